#!/usr/bin/env bash
exec /opt/kafka/bin/kafka-run org.apache.kafka.tools.TopicCommand "$@"
