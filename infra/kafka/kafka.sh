#!/usr/bin/env bash
# A real Kafka broker for the quickstart and the tests.
#
#   kafka.sh install          fetch the broker's jars once, into ${MILLPOND_CACHE:-~/.cache/millpond}
#   kafka.sh start DIR PORT   start a broker on 127.0.0.1:PORT (controller on PORT+1), data and log in DIR;
#                             what DIR/more.properties says overrides our own settings
#   kafka.sh stop DIR         stop it; DIR keeps its data
#
# Exit codes: 0 done, 2 wrong arguments, 3 Java or Maven cannot be had, 1 anything else.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=4.3.1
cache=${MILLPOND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millpond}/kafka-$version
lib=$cache/lib
# 22 characters of base64url: any id will do, but it must stay the same for a folder's life.
cluster_id=TWlsbHBvbmRUZXN0S2Fma2

say() { printf 'kafka: %s\n' "$*"; }
die() { local code=$1; shift; printf 'kafka: %s\n' "$*" >&2; exit "$code"; }

# need COMMAND PACKAGE: have the command, or install Debian's package for it.
need() {
  command -v "$1" >/dev/null 2>&1 && return
  if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null 2>&1; then
    say "installing $2 (for $1)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1 ||
      { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" >/dev/null; } ||
      die 3 "$1 is missing and apt-get could not install $2; install it and run this again"
    return
  fi
  die 3 "$1 is missing; install it (Debian, Ubuntu: sudo apt-get install $2) and run this again"
}

install() {
  need java default-jre-headless
  if [[ -f $cache/complete ]]; then
    say "Kafka $version is in $lib"
    return
  fi
  need mvn maven
  say "fetching Kafka $version (about 45 MB) into $lib"
  # Into a folder of its own, moved at the end: two that fetch at once do no harm, nor does a kill.
  mkdir -p "$cache"
  local fresh
  fresh=$(mktemp -d "$cache/fetch.XXXXXX")
  mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$fresh" ||
    { rm -rf "$fresh"; die 1 "Maven could not fetch Kafka $version (its words are above)"; }
  if [[ ! -f $cache/complete ]]; then
    rm -rf "$lib"
    mv "$fresh" "$lib"
    touch "$cache/complete"
  else
    rm -rf "$fresh"
  fi
  say "Kafka $version is in $lib"
}

java_heap() { echo "-Xms64m -Xmx${MILLPOND_KAFKA_HEAP:-384m} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData"; }

# Whether the broker of DIR runs (its pid file may have outlived it, and the pid may be another's by now).
running() {
  [[ -f $1/broker.pid ]] || return 1
  local pid
  pid=$(<"$1/broker.pid")
  kill -0 "$pid" 2>/dev/null || return 1
  # Without /proc (macOS) a live pid must do.
  [[ ! -r /proc/$pid/cmdline ]] || tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "kafka.Kafka $1/server.properties"
}

start() {
  [[ $# -eq 2 ]] || die 2 "usage: kafka.sh start DIR PORT"
  [[ $2 =~ ^[0-9]+$ ]] || die 2 "PORT must be a number, not '$2'"
  install
  mkdir -p "$1"
  local dir port=$2 controller=$(($2 + 1))
  dir=$(cd "$1" && pwd -P)
  if running "$dir"; then
    say "already running in $dir (pid $(<"$dir/broker.pid"))"
    return
  fi
  local parts=("$here/server.properties.in")
  # Of a property that stands there twice the last one counts.
  [[ ! -f $dir/more.properties ]] || parts+=("$dir/more.properties")
  sed -e "s|@DIR@|$dir|g" -e "s|@PORT@|$port|g" -e "s|@CONTROLLER_PORT@|$controller|g" "${parts[@]}" >"$dir/server.properties"
  if [[ ! -f $dir/data/meta.properties ]]; then
    java -Xmx128m -cp "$lib/*" kafka.tools.StorageTool format -t "$cluster_id" -c "$dir/server.properties" >"$dir/format.log" 2>&1 ||
      { cat "$dir/format.log" >&2; die 1 "the storage in $dir could not be formatted"; }
  fi
  : >"$dir/broker.log"
  # shellcheck disable=SC2046  # the words of java_heap are options of their own
  (
    cd "$dir"
    # In a session of its own, so that Ctrl-C for us is not Ctrl-C for the broker before it is told to stop.
    launcher=()
    command -v setsid >/dev/null 2>&1 && launcher=(setsid)
    exec "${launcher[@]}" java $(java_heap) -Dorg.slf4j.simpleLogger.defaultLogLevel="${MILLPOND_KAFKA_LOG:-warn}" \
      -Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info \
      -Dorg.slf4j.simpleLogger.log.org.apache.kafka.server.BrokerServer=info \
      -Dorg.slf4j.simpleLogger.log.kafka.server.BrokerServer=info \
      -cp "$lib/*" kafka.Kafka "$dir/server.properties" >>"$dir/broker.log" 2>&1 </dev/null
  ) &
  local pid=$!
  echo "$pid" >"$dir/broker.pid"
  local deadline=$((SECONDS + 90))
  until grep -q 'Kafka Server started' "$dir/broker.log"; do
    if ! kill -0 "$pid" 2>/dev/null; then
      rm -f "$dir/broker.pid"
      tail -n 20 "$dir/broker.log" >&2
      die 1 "the broker did not start; its log is $dir/broker.log"
    fi
    if ((SECONDS >= deadline)); then
      stop "$dir"
      die 1 "the broker was not ready within 90 s; its log is $dir/broker.log"
    fi
    sleep 0.1
  done
  say "ready on 127.0.0.1:$port (pid $pid)"
}

stop() {
  [[ $# -eq 1 ]] || die 2 "usage: kafka.sh stop DIR"
  [[ -d $1 ]] || { say "nothing runs in $1"; return; }
  local dir pid
  dir=$(cd "$1" && pwd -P)
  if ! running "$dir"; then
    rm -f "$dir/broker.pid"
    say "nothing runs in $dir"
    return
  fi
  pid=$(<"$dir/broker.pid")
  kill -TERM "$pid" 2>/dev/null || true
  local deadline=$((SECONDS + 15))
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS >= deadline)); then
      say "pid $pid did not stop within 15 s; killing it"
      kill -KILL "$pid" 2>/dev/null || true
    fi
    sleep 0.1
  done
  rm -f "$dir/broker.pid"
  say "stopped"
}

case ${1:-} in
install) install ;;
start) shift; start "$@" ;;
stop) shift; stop "$@" ;;
*) die 2 "usage: kafka.sh install | start DIR PORT | stop DIR" ;;
esac
