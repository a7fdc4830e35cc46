package deeplambda.gateway;

import java.io.File;
import java.util.concurrent.TimeUnit;
import org.apache.hadoop.fs.FileUtil;
import org.apache.spark.SparkContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Ends analysts' jobs when what they have written beside the heap, to sort, join and shuffle, passes a limit: nobody
 * else would end one that fills the disk. What ended statements have left is given up first; Spark deletes it when a
 * collection finds that nobody refers to it.
 */
final class DiskGuard implements Runnable {
    private static final Logger LOG = LoggerFactory.getLogger("deeplambda.gateway");
    private static final long LOOK_EVERY_S = 3;
    private static final String REASON =
        "because queries had written too much to disk: ask for less at once, with a filter, an aggregate or LIMIT";

    private final SparkContext context;
    private final File folder;
    private final long limitBytes;
    private boolean wasFull;

    private DiskGuard(SparkContext context, long limitBytes) {
        this.context = context;
        this.limitBytes = limitBytes;
        this.folder = new File(context.conf().get("spark.local.dir"));
    }

    static void watch(SparkContext context) {
        long limitBytes = context.conf().getSizeAsBytes("spark.deeplambda.gateway.diskLimit");
        Thread looking = new Thread(new DiskGuard(context, limitBytes), "disk guard");
        looking.setDaemon(true);
        looking.start();
    }

    public void run() {
        while (true) {
            try {
                Thread.sleep(TimeUnit.SECONDS.toMillis(LOOK_EVERY_S));
                look();
            } catch (Throwable e) { // whatever it is, memory that ran out among it: the next look may succeed
                LOG.warn("the watch for what queries write: {}", e.toString());
            }
        }
    }

    private void look() {
        boolean isFull = FileUtil.getDU(folder) > limitBytes;
        if (isFull && wasFull) {
            HeapGuard.endAnalystsJobs(context, "short of disk", REASON);
        } else if (isFull) {
            System.gc();
        }
        wasFull = isFull;
    }
}
