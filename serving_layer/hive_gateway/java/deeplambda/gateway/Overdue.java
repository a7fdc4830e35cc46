package deeplambda.gateway;

import java.lang.reflect.Field;
import java.util.Iterator;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import org.apache.hive.service.cli.session.SessionManager;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerStageCompleted;
import org.apache.spark.scheduler.SparkListenerStageSubmitted;
import org.apache.spark.scheduler.SparkListenerTaskEnd;
import org.apache.spark.scheduler.SparkListenerTaskStart;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Ends the process, which is then started anew, when a thread or a task is still at work on a statement that met the
 * time limit a minute ago. A single expression may take hours, such as a regular expression that backtracks; it looks at
 * no interruption, and a few of them would keep every thread or every core for as long.
 */
final class Overdue extends SparkListener implements Runnable {
    private static final Logger LOG = LoggerFactory.getLogger("deeplambda.gateway");
    private static final long GRACE_S = 60;
    private static final long LOOK_EVERY_MS = 5000;
    private static final long ENDS_WITHIN_MS = 10000;
    private static final Map SINCE = new ConcurrentHashMap(); // by thread, or id of a task: nanoseconds

    private final Set stages = ConcurrentHashMap.newKeySet(); // of analysts' statements
    private final long limitS;

    private Overdue(long limitS) {
        this.limitS = limitS + GRACE_S;
    }

    /** Looks from now on. limitS: what a statement may take. Returns what is to hear of tasks. */
    static SparkListener watch(SessionManager sessions, long limitS) throws ReflectiveOperationException {
        Field field = SessionManager.class.getDeclaredField("backgroundOperationPool");
        field.setAccessible(true);
        field.set(sessions, new Pool((ThreadPoolExecutor) field.get(sessions)));
        Overdue overdue = new Overdue(limitS);
        Thread looking = new Thread(overdue, "overdue");
        looking.setDaemon(true);
        looking.start();
        return overdue;
    }

    /** This thread begins with a statement. */
    static void begins() {
        SINCE.put(Thread.currentThread(), Long.valueOf(System.nanoTime()));
    }

    /** This thread has ended with it. */
    static void ended() {
        SINCE.remove(Thread.currentThread());
    }

    public void onStageSubmitted(SparkListenerStageSubmitted stage) {
        // HiveServer2 names the group of a statement's jobs as the statement; jobs of the gateway's own have none.
        if (stage.properties().getProperty("spark.jobGroup.id") != null) {
            stages.add(Integer.valueOf(stage.stageInfo().stageId()));
        }
    }

    public void onStageCompleted(SparkListenerStageCompleted stage) {
        stages.remove(Integer.valueOf(stage.stageInfo().stageId()));
    }

    public void onTaskStart(SparkListenerTaskStart task) {
        if (stages.contains(Integer.valueOf(task.stageId()))) {
            SINCE.put(Long.valueOf(task.taskInfo().taskId()), Long.valueOf(System.nanoTime()));
        }
    }

    public void onTaskEnd(SparkListenerTaskEnd task) { // of a cancelled one, when its thread has ended
        SINCE.remove(Long.valueOf(task.taskInfo().taskId()));
    }

    public void run() {
        try {
            while (!isOverdue()) {
                Thread.sleep(LOOK_EVERY_MS);
            }
            LOG.error("a statement that met the time limit {} s ago cannot be ended: the gateway starts anew", GRACE_S);
            Thread ending = new Thread(new Runnable() {
                public void run() {
                    System.exit(1);
                }
            });
            ending.start();
            ending.join(ENDS_WITHIN_MS);
        } catch (InterruptedException e) {
            return; // nobody does so
        }
        Runtime.getRuntime().halt(1);
    }

    private boolean isOverdue() {
        for (Iterator each = SINCE.values().iterator(); each.hasNext(); ) {
            if (System.nanoTime() - ((Long) each.next()).longValue() > TimeUnit.SECONDS.toNanos(limitS)) {
                return true;
            }
        }
        return false;
    }

    private static final class Pool extends ThreadPoolExecutor {
        Pool(ThreadPoolExecutor given) {
            super(
                given.getCorePoolSize(), given.getMaximumPoolSize(), given.getKeepAliveTime(TimeUnit.SECONDS),
                TimeUnit.SECONDS, given.getQueue(), given.getThreadFactory());
            allowCoreThreadTimeOut(given.allowsCoreThreadTimeOut());
        }

        protected void beforeExecute(Thread thread, Runnable statement) {
            begins();
        }

        protected void afterExecute(Runnable statement, Throwable thrown) {
            ended();
        }
    }
}
