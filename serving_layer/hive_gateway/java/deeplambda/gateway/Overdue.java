package deeplambda.gateway;

import java.lang.management.ManagementFactory;
import java.lang.management.ThreadInfo;
import java.lang.management.ThreadMXBean;
import java.lang.reflect.Field;
import java.util.HashMap;
import java.util.Iterator;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import org.apache.hive.service.cli.session.SessionManager;
import org.apache.spark.SparkContext;
import org.apache.spark.scheduler.TaskSchedulerImpl;
import org.apache.spark.scheduler.TaskSetManager;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Ends the process, which is then started anew, when something is still at work on a statement that met the time limit a
 * minute ago. A single expression may take hours, such as a regular expression that backtracks; it looks at no
 * interruption, and a few of them would keep every thread or every core for as long, or one the scheduler.
 *
 * <p>It looks every few seconds at three places where a statement's expressions are evaluated: the threads that execute
 * statements, the tasks of their jobs, and Spark's own threads of the driver. Time is counted in looks, so that a pause
 * of the whole process is none of a statement's.
 */
final class Overdue implements Runnable {
    private static final Logger LOG = LoggerFactory.getLogger("deeplambda.gateway");
    private static final long GRACE_S = 60;
    private static final long LOOK_EVERY_S = 5;
    private static final long ENDS_WITHIN_MS = 10000;
    // They wait most of the time, whoever asks for how much. One that is stuck is never seen to.
    private static final Pattern DRIVERS_OWN =
        Pattern.compile("(dag-scheduler-event-loop|subquery|broadcast-exchange|dynamicpruning|task-result-getter)");
    private static final long LEAST_WORK_NS = 1000000; // in a look: a thread that reads from a socket seems to run, too
    private static final Map EXECUTING = new ConcurrentHashMap(); // by thread: the look at which it began

    private static volatile long looks;

    private final Map tasks = new HashMap(); // by id: the look that found it first
    private final Map busy = new HashMap(); // by id of a thread: a Busy
    private final ThreadMXBean threads = ManagementFactory.getThreadMXBean();
    private final TaskSchedulerImpl scheduler;
    private final long limit;

    private Overdue(SparkContext context, long limitS) {
        this.scheduler = (TaskSchedulerImpl) context.taskScheduler();
        this.limit = (limitS + GRACE_S) / LOOK_EVERY_S;
    }

    /** Looks from now on. limitS: what a statement may take; where that is not limited, nothing is overdue. */
    static void watch(SparkContext context, SessionManager sessions, long limitS) throws ReflectiveOperationException {
        Field pool = GatewayServer.field(SessionManager.class, "backgroundOperationPool");
        pool.set(sessions, new Pool((ThreadPoolExecutor) pool.get(sessions)));
        if (limitS > 0) {
            Thread looking = new Thread(new Overdue(context, limitS), "overdue");
            looking.setDaemon(true);
            looking.start();
        }
    }

    /** This thread begins with a statement. */
    static void begins() {
        EXECUTING.put(Thread.currentThread(), Long.valueOf(looks));
    }

    /** This thread has ended with it. */
    static void ended() {
        EXECUTING.remove(Thread.currentThread());
    }

    public void run() {
        while (true) {
            try {
                Thread.sleep(TimeUnit.SECONDS.toMillis(LOOK_EVERY_S));
                looks++;
                lookAtTasks();
                lookAtThreads();
                endIfAnyIsOver(EXECUTING);
                endIfAnyIsOver(tasks);
                endIfAnyIsOver(busy);
            } catch (Throwable e) { // whatever it is, memory that ran out among it: the next look may succeed
                LOG.warn("the watch for statements that do not end: {}", e.toString());
            }
        }
    }

    private void lookAtTasks() {
        Map managers = scheduler.taskIdToTaskSetManager(); // of tasks whose thread has not ended yet
        tasks.keySet().retainAll(managers.keySet());
        for (Iterator each = managers.entrySet().iterator(); each.hasNext(); ) {
            Map.Entry task = (Map.Entry) each.next();
            // HiveServer2 names the group of a statement's jobs as the statement; jobs of the gateway's own have none.
            if (((TaskSetManager) task.getValue()).taskSet().properties().getProperty("spark.jobGroup.id") != null) {
                tasks.putIfAbsent(task.getKey(), Long.valueOf(looks));
            }
        }
    }

    private void lookAtThreads() {
        Map before = new HashMap(busy);
        busy.clear();
        ThreadInfo[] found = threads.getThreadInfo(threads.getAllThreadIds());
        for (int i = 0; i < found.length; i++) {
            if (found[i] != null && found[i].getThreadState() == Thread.State.RUNNABLE
                    && DRIVERS_OWN.matcher(found[i].getThreadName()).lookingAt()) {
                Long id = Long.valueOf(found[i].getThreadId());
                Busy was = (Busy) before.get(id);
                long processorNs = threads.getThreadCpuTime(found[i].getThreadId());
                boolean worked = was != null && processorNs - was.processorNs > LEAST_WORK_NS;
                busy.put(id, new Busy(processorNs, worked ? was.since : looks));
            }
        }
    }

    private void endIfAnyIsOver(Map since) {
        for (Iterator each = since.entrySet().iterator(); each.hasNext(); ) {
            Map.Entry entry = (Map.Entry) each.next();
            Object value = entry.getValue();
            long began = value instanceof Busy ? ((Busy) value).since : ((Long) value).longValue();
            if (looks - began > limit) {
                endProcess(entry.getKey());
            }
        }
    }

    private static void endProcess(Object atWork) {
        try {
            LOG.error(
                "a statement that met the time limit {} s ago cannot be ended ({}): the gateway starts anew", GRACE_S, atWork);
            Thread ending = new Thread(new Runnable() {
                public void run() {
                    System.exit(1);
                }
            });
            ending.start();
            ending.join(ENDS_WITHIN_MS);
        } catch (InterruptedException e) {
            LOG.warn("interrupted"); // nobody does so
        } finally {
            Runtime.getRuntime().halt(1);
        }
    }

    /** A thread that had something to do at each look since then. */
    private static final class Busy {
        final long processorNs;
        final long since;

        Busy(long processorNs, long since) {
            this.processorNs = processorNs;
            this.since = since;
        }
    }

    private static final class Pool extends ThreadPoolExecutor {
        Pool(ThreadPoolExecutor given) {
            super(
                given.getCorePoolSize(), given.getMaximumPoolSize(), given.getKeepAliveTime(TimeUnit.SECONDS),
                TimeUnit.SECONDS, given.getQueue(), given.getThreadFactory());
            allowCoreThreadTimeOut(given.allowsCoreThreadTimeOut());
        }

        protected void beforeExecute(Thread thread, Runnable work) {
            if (work instanceof Future) { // a statement; HiveServer2's own watch for idle sessions runs here, too, for ever
                begins();
            }
        }

        protected void afterExecute(Runnable work, Throwable thrown) {
            ended();
        }
    }
}
