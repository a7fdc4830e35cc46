#!/usr/bin/env bash
# As the official image: system tables and root's password at the first start; options go to the server.
set -euo pipefail
if [ "${1:0:1}" != - ] && [ "$1" = mysqld ]; then shift; fi
if [ "$(id -u)" = 0 ]; then
    chown -R mysql:mysql /var/lib/mysql
    exec gosu mysql "$0" "$@"
fi
password=$(cat "${MYSQL_ROOT_PASSWORD_FILE:?}")
common=(--no-defaults --basedir=/opt/mysql --datadir=/var/lib/mysql)
if [ ! -d /var/lib/mysql/mysql ]; then
    /opt/mysql/scripts/mariadb-install-db "${common[@]}" --auth-root-authentication-method=normal --skip-test-db \
        --skip-name-resolve >/tmp/install.log || { cat /tmp/install.log >&2; exit 1; }
fi
umask 077
cat >/tmp/init.sql <<EOF
CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '$password';
GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;
ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';
DROP USER IF EXISTS ''@'localhost', 'root'@'127.0.0.1', 'root'@'::1';
EOF
exec /opt/mysql/bin/mariadbd "${common[@]}" --init-file=/tmp/init.sql --socket=/var/run/mysqld/mysqld.sock \
    --pid-file=/var/run/mysqld/mysqld.pid --bind-address=0.0.0.0 --skip-ssl "$@"
