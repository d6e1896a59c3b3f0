//! A broker that asks who is there: SASL and TLS listeners, SCRAM users and ACLs.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use rdkafka::bindings as rd;
use rdkafka::bindings::rd_kafka_AclOperation_t as Op;
use rdkafka::bindings::rd_kafka_ResourcePatternType_t as Pattern;
use rdkafka::bindings::rd_kafka_ResourceType_t as Resource;

use super::kafka::Broker;

/// Listeners beside the plain one, on which everything is allowed.
pub struct Secured {
    pub broker: Broker,
}

const SCRAM: &str = "org.apache.kafka.common.security.scram.ScramLoginModule required;";

impl Secured {
    /// `users` may log in with PLAIN; for SCRAM see [`Secured::scram_user`].
    pub fn start(users: &[(&str, &str)]) -> Self {
        let users: String = users.iter().map(|(name, password)| format!(" user_{name}=\"{password}\"")).collect();
        let broker = Broker::with(5, |dir, port| {
            certificates(&dir.join("tls"));
            let listener = |name: &str, n: u16| format!("{name}://127.0.0.1:{}", port + n);
            let ours = [listener("SASL_PLAINTEXT", 2), listener("SSL", 3), listener("SASL_SSL", 4)].join(",");
            let plain = format!("org.apache.kafka.common.security.plain.PlainLoginModule required{users};");
            let logins: String = ["sasl_plaintext", "sasl_ssl"]
                .iter()
                .map(|l| {
                    format!(
                        "listener.name.{l}.plain.sasl.jaas.config={plain}\nlistener.name.{l}.scram-sha-256.sasl.jaas.config={SCRAM}\nlistener.name.{l}.scram-sha-512.sasl.jaas.config={SCRAM}\n"
                    )
                })
                .collect();
            let tls = dir.join("tls");
            format!(
                "listeners={},{},{ours}\nadvertised.listeners={},{ours}\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL\n\
                 sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n{logins}\
                 authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nsuper.users=User:ANONYMOUS\n\
                 ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
                 listener.name.ssl.ssl.client.auth=required\n",
                listener("PLAINTEXT", 0),
                listener("CONTROLLER", 1),
                listener("PLAINTEXT", 0),
                tls.join("server.pem").display(),
                tls.join("ca.pem").display()
            )
        });
        Self { broker }
    }

    pub fn sasl_plaintext(&self) -> String {
        format!("127.0.0.1:{}", self.broker.port() + 2)
    }

    /// Asks its clients for a certificate.
    pub fn ssl(&self) -> String {
        format!("127.0.0.1:{}", self.broker.port() + 3)
    }

    pub fn sasl_ssl(&self) -> String {
        format!("127.0.0.1:{}", self.broker.port() + 4)
    }

    /// A file of the TLS folder: `ca.pem`, `reader.pem` and `reader.key` (CN=reader), `other-ca.pem`.
    pub fn tls(&self, file: &str) -> PathBuf {
        self.broker.dir().join("tls").join(file)
    }

    /// Makes a user who may log in with SCRAM-SHA-256.
    pub fn scram_user(&self, name: &str, password: &str) {
        let user = CString::new(name).unwrap();
        self.ask(|client, queue| {
            // SAFETY: the strings live across the call, which copies them; the alteration is destroyed after the request was made.
            unsafe {
                let sha_256 = rd::rd_kafka_ScramMechanism_t::RD_KAFKA_SCRAM_MECHANISM_SHA_256;
                let mut alteration = rd::rd_kafka_UserScramCredentialUpsertion_new(user.as_ptr(), sha_256, 4096, password.as_ptr(), password.len(), ptr::null(), 0);
                rd::rd_kafka_AlterUserScramCredentials(client, &mut alteration, 1, ptr::null(), queue);
                rd::rd_kafka_UserScramCredentialAlteration_destroy(alteration);
            }
        });
    }

    /// Allows `principal` to do something. A group's name is the beginning of one: its end is known only once the lake is there.
    pub fn allow(&self, principal: &str, resource: Resource, name: &str, op: Op) {
        let [name, principal, host] = [name, principal, "*"].map(|s| CString::new(s).unwrap());
        self.ask(|client, queue| {
            // SAFETY: as above.
            unsafe {
                let (literal, prefixed) = (Pattern::RD_KAFKA_RESOURCE_PATTERN_LITERAL, Pattern::RD_KAFKA_RESOURCE_PATTERN_PREFIXED);
                let pattern = if resource == Resource::RD_KAFKA_RESOURCE_GROUP { prefixed } else { literal };
                let allow = rd::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
                let mut acl = rd::rd_kafka_AclBinding_new(resource, name.as_ptr(), pattern, principal.as_ptr(), host.as_ptr(), op, allow, ptr::null_mut(), 0);
                assert!(!acl.is_null());
                rd::rd_kafka_CreateAcls(client, &mut acl, 1, ptr::null(), queue);
                rd::rd_kafka_AclBinding_destroy(acl);
            }
        });
    }

    pub fn allow_topic(&self, principal: &str, topic: &str) {
        self.allow(principal, Resource::RD_KAFKA_RESOURCE_TOPIC, topic, Op::RD_KAFKA_ACL_OPERATION_READ);
        self.allow(principal, Resource::RD_KAFKA_RESOURCE_TOPIC, topic, Op::RD_KAFKA_ACL_OPERATION_DESCRIBE);
    }

    pub fn allow_group(&self, principal: &str, group: &str) {
        self.allow(principal, Resource::RD_KAFKA_RESOURCE_GROUP, group, Op::RD_KAFKA_ACL_OPERATION_READ);
    }

    /// Makes a request on the plain listener, whose users may do everything, and waits for its answer. Asked twice it changes nothing more.
    fn ask(&self, request: impl Fn(*mut rd::rd_kafka_t, *mut rd::rd_kafka_queue_t)) {
        let answered = |_| {
            let admin = self.broker.admin();
            let client = admin.inner().native_ptr();
            // SAFETY: client and queue live to the end of the block; the event is ours to destroy.
            unsafe {
                let queue = rd::rd_kafka_queue_new(client);
                request(client, queue);
                let event = rd::rd_kafka_queue_poll(queue, 30_000);
                let code = (!event.is_null()).then(|| rd::rd_kafka_event_error(event));
                if !event.is_null() {
                    rd::rd_kafka_event_destroy(event);
                }
                rd::rd_kafka_queue_destroy(queue);
                code == Some(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR)
            }
        };
        assert!((0..4).any(answered), "admin requests fail, or are not answered");
    }
}

/// A CA, the broker's certificate for 127.0.0.1, a reader's, and another CA that signed nothing.
fn certificates(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let script = r#"
set -eu
key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }
for ca in ca other-ca; do
  key $ca.key
  openssl req -x509 -new -key $ca.key -subj "/CN=$ca" -days 3650 -out $ca.pem
done
sign() {
  key "$1.key"
  openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
  printf '%s\n' "$2" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile "$1.ext" -out "$1.pem"
}
sign server 'subjectAltName=IP:127.0.0.1,DNS:localhost'
sign reader 'extendedKeyUsage=clientAuth'
cat server.key >>server.pem
"#;
    let out = Command::new("bash").args(["-c", script]).current_dir(dir).output().expect("bash runs");
    assert!(out.status.success(), "openssl could not make certificates: {}", String::from_utf8_lossy(&out.stderr));
}
