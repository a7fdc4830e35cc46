package deeplambda.spark;

import java.io.UncheckedIOException;
import java.nio.channels.ClosedByInterruptException;
import java.time.Duration;
import java.util.HashMap;
import java.util.Iterator;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InterruptException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.spark.sql.connector.catalog.SupportsRead;
import org.apache.spark.sql.connector.catalog.Table;
import org.apache.spark.sql.connector.catalog.TableProvider;
import org.apache.spark.sql.connector.expressions.Transform;
import org.apache.spark.sql.connector.metric.CustomMetric;
import org.apache.spark.sql.connector.read.InputPartition;
import org.apache.spark.sql.connector.read.PartitionReaderFactory;
import org.apache.spark.sql.connector.read.Scan;
import org.apache.spark.sql.connector.read.ScanBuilder;
import org.apache.spark.sql.connector.read.streaming.MicroBatchStream;
import org.apache.spark.sql.connector.read.streaming.Offset;
import org.apache.spark.sql.connector.read.streaming.ReadLimit;
import org.apache.spark.sql.connector.read.streaming.ReportsSourceMetrics;
import org.apache.spark.sql.connector.read.streaming.SupportsTriggerAvailableNow;
import org.apache.spark.sql.kafka010.KafkaBatchInputPartition;
import org.apache.spark.sql.kafka010.KafkaOffsetRange;
import org.apache.spark.sql.kafka010.KafkaSourceOffset;
import org.apache.spark.sql.kafka010.KafkaSourceProvider;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.util.CaseInsensitiveStringMap;
import scala.jdk.javaapi.CollectionConverters$;

/**
 * Spark's Kafka source, which reads all, with four differences; the format's name is this class's.
 *
 * <ol>
 *   <li>Where nothing is new it waits at the broker for the next record, for a second at most. Spark's own asks every
 *       ten milliseconds, each time by two requests: a few idle streams take most of a core.
 *   <li>{@link #batch} tells what the micro-batch holds that is being worked on.
 *   <li>{@link #limit} says how large the next ones may be, in the place of `maxOffsetsPerTrigger`.
 *   <li>A topic that ends before its last batch did, or lacks one of its partitions, fails the stream. Spark's own plans
 *       a batch all the same, which can never be worked on, and is the first that the checkpoint has it try again.
 * </ol>
 */
public class EventSource implements TableProvider {
    private static final Duration WAIT = Duration.ofSeconds(1);
    private static final String CLIENT_OPTION = "kafka.";
    // By topic.
    private static final Map BATCHES = new ConcurrentHashMap();
    private static final Map LIMITS = new ConcurrentHashMap();

    private final TableProvider kafka = new KafkaSourceProvider();

    /**
     * The micro-batch of the stream that subscribes to `topic`: JSON of [partition, first offset, offset after the
     * last], in any order, several of a partition where it is split among tasks. Null where none is being worked on.
     */
    public static String batch(String topic) {
        return (String) BATCHES.get(topic);
    }

    /** Lets the micro-batches of the stream that subscribes to `topic` be as large as `limit` says from the next one on. */
    public static void limit(String topic, ReadLimit limit) {
        LIMITS.put(topic, limit);
    }

    public StructType inferSchema(CaseInsensitiveStringMap options) {
        return kafka.inferSchema(options);
    }

    public Table getTable(StructType schema, Transform[] partitioning, Map properties) {
        return new EventTable((SupportsRead) kafka.getTable(schema, partitioning, properties));
    }

    private static class EventTable implements SupportsRead {
        private final SupportsRead kafka;

        EventTable(SupportsRead kafka) {
            this.kafka = kafka;
        }

        public String name() {
            return "events";
        }

        public StructType schema() {
            return kafka.schema();
        }

        public Set capabilities() {
            return kafka.capabilities();
        }

        public ScanBuilder newScanBuilder(CaseInsensitiveStringMap options) {
            return new EventScan(kafka.newScanBuilder(options).build(), options);
        }
    }

    private static class EventScan implements Scan, ScanBuilder {
        private final Scan kafka;
        private final CaseInsensitiveStringMap options;

        EventScan(Scan kafka, CaseInsensitiveStringMap options) {
            this.kafka = kafka;
            this.options = options;
        }

        public Scan build() {
            return this;
        }

        public StructType readSchema() {
            return kafka.readSchema();
        }

        public CustomMetric[] supportedCustomMetrics() { // which its readers report
            return kafka.supportedCustomMetrics();
        }

        public MicroBatchStream toMicroBatchStream(String checkpointLocation) {
            return new EventStream(kafka.toMicroBatchStream(checkpointLocation), options);
        }
    }

    private static class EventStream implements MicroBatchStream, SupportsTriggerAvailableNow, ReportsSourceMetrics {
        private final MicroBatchStream kafka;
        private final CaseInsensitiveStringMap options;
        private final String topic;
        private KafkaConsumer waiting;
        private boolean untilEmpty;
        private boolean latestKnown;

        EventStream(MicroBatchStream kafka, CaseInsensitiveStringMap options) {
            this.kafka = kafka;
            this.options = options;
            this.topic = options.get("subscribe");
        }

        public Offset latestOffset() {
            return kafka.latestOffset();
        }

        public Offset latestOffset(Offset start, ReadLimit limit) {
            BATCHES.remove(topic);
            ReadLimit limited = LIMITS.containsKey(topic) ? (ReadLimit) LIMITS.get(topic) : limit;
            Offset latest = latestPast(start, limited);
            if (untilEmpty || !start.equals(latest) || !isWoken((KafkaSourceOffset) start)) {
                return latest;
            }
            return latestPast(start, limited);
        }

        /** The latest offset that there is. Throws where a partition ends before `start`, or is gone. */
        private Offset latestPast(Offset start, ReadLimit limit) {
            Offset latest = admission().latestOffset(start, limit);
            latestKnown = true;
            requireEndPast((KafkaSourceOffset) start, (KafkaSourceOffset) latest);
            return latest;
        }

        private void requireEndPast(KafkaSourceOffset start, KafkaSourceOffset latest) {
            Map ends = byPartition(latest);
            for (Iterator each = byPartition(start).entrySet().iterator(); each.hasNext(); ) {
                Map.Entry begin = (Map.Entry) each.next();
                Long end = (Long) ends.get(begin.getKey());
                if (end == null || end.longValue() < ((Long) begin.getValue()).longValue()) {
                    String now = end == null ? " is gone" : " ends at offset " + end;
                    throw new IllegalStateException(
                            begin.getKey() + now + ", and was read up to " + begin.getValue());
                }
            }
        }

        private static Map byPartition(KafkaSourceOffset offset) {
            return CollectionConverters$.MODULE$.asJava(offset.partitionToOffsets());
        }

        /** Whether a record came past `start` in time. */
        private boolean isWoken(KafkaSourceOffset start) {
            Map offsets = byPartition(start);
            try {
                if (waiting == null) {
                    waiting = new KafkaConsumer(consumerSettings());
                }
                waiting.assign(offsets.keySet());
                for (Iterator each = offsets.entrySet().iterator(); each.hasNext(); ) {
                    Map.Entry offset = (Map.Entry) each.next();
                    waiting.seek((TopicPartition) offset.getKey(), ((Long) offset.getValue()).longValue());
                }
                return !waiting.poll(WAIT).isEmpty();
            } catch (InterruptException e) {
                Thread.interrupted();
                throw new UncheckedIOException(new ClosedByInterruptException()); // as Spark knows a stop
            }
        }

        private Map consumerSettings() {
            Map settings = new HashMap();
            for (Iterator each = options.asCaseSensitiveMap().entrySet().iterator(); each.hasNext(); ) {
                Map.Entry option = (Map.Entry) each.next();
                String name = (String) option.getKey();
                if (name.startsWith(CLIENT_OPTION)) {
                    settings.put(name.substring(CLIENT_OPTION.length()), option.getValue());
                }
            }
            settings.put("key.deserializer", ByteArrayDeserializer.class.getName());
            settings.put("value.deserializer", ByteArrayDeserializer.class.getName());
            settings.put("enable.auto.commit", "false");
            settings.put("auto.offset.reset", "none");
            settings.put("allow.auto.create.topics", "false");
            settings.put("fetch.max.wait.ms", String.valueOf(WAIT.toMillis()));
            // It is to know of a record, not to have it: Kafka then answers with one and no more.
            settings.put("max.partition.fetch.bytes", "1");
            settings.put("fetch.max.bytes", "1");
            return settings;
        }

        public InputPartition[] planInputPartitions(Offset start, Offset end) {
            InputPartition[] planned = kafka.planInputPartitions(start, end);
            StringBuilder ranges = new StringBuilder("[");
            for (int i = 0; i < planned.length; i++) {
                KafkaOffsetRange range = ((KafkaBatchInputPartition) planned[i]).offsetRange();
                ranges.append(i == 0 ? "[" : ",[").append(range.partition()).append(',');
                ranges.append(range.fromOffset()).append(',').append(range.untilOffset()).append(']');
            }
            BATCHES.put(topic, ranges.append(']').toString());
            return planned;
        }

        public Offset initialOffset() {
            return kafka.initialOffset();
        }

        public Offset deserializeOffset(String json) {
            return kafka.deserializeOffset(json);
        }

        public PartitionReaderFactory createReaderFactory() {
            return kafka.createReaderFactory();
        }

        public ReadLimit getDefaultReadLimit() {
            return admission().getDefaultReadLimit();
        }

        public Offset reportLatestOffset() {
            return admission().reportLatestOffset();
        }

        public void prepareForTriggerAvailableNow() {
            untilEmpty = true;
            admission().prepareForTriggerAvailableNow();
        }

        public Map metrics(Optional latestConsumedOffset) {
            // Of a batch that was planned before the stream began, Spark's own throws: it has not asked yet.
            return latestKnown ? ((ReportsSourceMetrics) kafka).metrics(latestConsumedOffset) : new HashMap();
        }

        public void commit(Offset end) {
            kafka.commit(end);
        }

        public void stop() {
            BATCHES.remove(topic);
            try {
                if (waiting != null) {
                    waiting.close(Duration.ZERO);
                }
            } catch (InterruptException e) {
                Thread.currentThread().interrupt();
            } finally {
                kafka.stop();
            }
        }

        private SupportsTriggerAvailableNow admission() {
            return (SupportsTriggerAvailableNow) kafka;
        }
    }
}
