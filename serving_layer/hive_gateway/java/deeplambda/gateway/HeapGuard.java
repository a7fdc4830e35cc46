package deeplambda.gateway;

import java.lang.management.ManagementFactory;
import java.lang.management.MemoryNotificationInfo;
import java.lang.management.MemoryPoolMXBean;
import java.lang.management.MemoryType;
import java.util.Iterator;
import javax.management.Notification;
import javax.management.NotificationEmitter;
import javax.management.NotificationListener;
import org.apache.spark.SparkContext;
import org.apache.spark.scheduler.ActiveJob;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Ends analysts' jobs when a collection leaves the heap nearly full: better than minutes in which it collects garbage
 * for one of them and answers nobody.
 */
final class HeapGuard implements NotificationListener {
    private static final Logger LOG = LoggerFactory.getLogger("deeplambda.gateway");
    private static final double FULL = 0.75;
    private static final String REASON =
        "because the gateway ran short of memory: ask for less at once, with a filter, an aggregate or LIMIT";

    private final SparkContext context;

    private HeapGuard(SparkContext context) {
        this.context = context;
    }

    static void watch(SparkContext context) {
        Iterator pools = ManagementFactory.getMemoryPoolMXBeans().iterator();
        while (pools.hasNext()) {
            MemoryPoolMXBean pool = (MemoryPoolMXBean) pools.next();
            // Of the heap's pools only that of old objects has this threshold.
            if (pool.getType() == MemoryType.HEAP && pool.isUsageThresholdSupported()) {
                pool.setCollectionUsageThreshold((long) (pool.getUsage().getMax() * FULL));
            }
        }
        NotificationEmitter memory = (NotificationEmitter) ManagementFactory.getMemoryMXBean();
        memory.addNotificationListener(new HeapGuard(context), null, null);
    }

    public void handleNotification(Notification notification, Object handback) {
        if (MemoryNotificationInfo.MEMORY_COLLECTION_THRESHOLD_EXCEEDED.equals(notification.getType())) {
            endAnalystsJobs(context, "short of memory", REASON);
        }
    }

    static void endAnalystsJobs(SparkContext context, String why, String reason) {
        scala.collection.Iterator jobs = context.dagScheduler().activeJobs().toSeq().iterator();
        while (jobs.hasNext()) {
            ActiveJob job = (ActiveJob) jobs.next();
            if (job.properties().getProperty("spark.jobGroup.id") != null) { // HiveServer2 names its jobs' groups
                LOG.warn("{}: job {} is cancelled", why, Integer.valueOf(job.jobId()));
                context.cancelJob(job.jobId(), reason);
            }
        }
    }
}
