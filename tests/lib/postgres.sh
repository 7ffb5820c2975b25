# shellcheck shell=bash
# A PostgreSQL below $scratch, for two spire-servers. To be sourced after lib.sh:
#
#   postgres_start [PORT]     on a socket in $postgres_home, and on 127.0.0.1:PORT if named
#   postgres_sql STATEMENT
#
# Its database is "spire", and every one of this machine is "postgres" to it.

postgres=$(printf '%s\n' /usr/lib/postgresql/*/bin | tail -n 1)
postgres_home=$scratch/pg

# It refuses to be root's. No function, which would be a process between it and `stop`.
as_postgres=()
if [ "$(id -u)" -eq 0 ]; then
    as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups
        env -C / HOME=/ TMPDIR=/tmp)
fi

postgres_sql() {
    "${as_postgres[@]}" "$postgres/psql" -h "$postgres_home" ${postgres_port:+-p "$postgres_port"} \
        -U postgres -v ON_ERROR_STOP=1 -Atc "$@"
}

postgres_start() {
    postgres_port=${1-}
    mkdir "$postgres_home"
    if [ "$(id -u)" -eq 0 ]; then
        chmod 711 "$scratch"
        chown postgres: "$postgres_home"
    fi
    "${as_postgres[@]}" "$postgres/initdb" --no-sync -A trust -U postgres -D "$postgres_home/db" ||
        return 1
    start postgres "${as_postgres[@]}" "$postgres/postgres" -D "$postgres_home/db" \
        -k "$postgres_home" -c listen_addresses="${1:+127.0.0.1}" ${1:+-c "port=$1"} -c fsync=off
    await 15 postgres_sql 'select 1' && postgres_sql 'create database spire'
}
