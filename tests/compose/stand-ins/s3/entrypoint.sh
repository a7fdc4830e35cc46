#!/usr/bin/env bash
# Takes SeaweedFS's command line and its file of identities; S3Proxy serves.
set -euo pipefail
for argument in "$@"; do
    case $argument in
    -s3.config=*) config=${argument#*=} ;;
    -s3.port=*) port=${argument#*=} ;;
    esac
done
if [ "$(id -u)" = 0 ]; then
    chown -R 1000:1000 /data
    exec setpriv --reuid 1000 --regid 1000 --clear-groups "$0" "$@"
fi
field() { sed -nE "s/.*\"$1\": *\"([^\"]*)\".*/\1/p" "$config"; }
cat >/tmp/s3proxy.properties <<EOF
s3proxy.endpoint=http://0.0.0.0:$port
s3proxy.authorization=aws-v2-or-v4
s3proxy.identity=$(field accessKey)
s3proxy.credential=$(field secretKey)
jclouds.provider=filesystem-nio2
jclouds.filesystem.basedir=/data
EOF
exec java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData \
    -Dlogback.configurationFile=/opt/s3/logback.xml -cp '/opt/s3/libs/*' org.gaul.s3proxy.Main --properties /tmp/s3proxy.properties
