//! What the tests share: real services, started and stopped here.
