package deeplambda.gateway;

import java.util.HashSet;
import java.util.Set;
import org.apache.spark.SparkContext;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerEvent;
import org.apache.spark.scheduler.SparkListenerJobStart;
import org.apache.spark.sql.hive.thriftserver.ui.SparkListenerThriftServerOperationCanceled;
import org.apache.spark.sql.hive.thriftserver.ui.SparkListenerThriftServerOperationClosed;
import org.apache.spark.sql.hive.thriftserver.ui.SparkListenerThriftServerOperationError;
import org.apache.spark.sql.hive.thriftserver.ui.SparkListenerThriftServerOperationStart;
import org.apache.spark.sql.hive.thriftserver.ui.SparkListenerThriftServerOperationTimeout;

/**
 * Ends what a statement starts after it has ended. HiveServer2 cancels the jobs that a statement has at that moment; a
 * stage that another thread of Spark's still compiles is submitted afterwards, and would run with nobody to stop it.
 * Spark 4.1's cancelJobGroupAndFutureJobs does not look at such stages either.
 */
final class EndedStatements extends SparkListener {
    private final SparkContext context;
    private final Set running = new HashSet(); // identities; used by the listener bus's one thread only

    private EndedStatements(SparkContext context) {
        this.context = context;
    }

    static void watch(SparkContext context) {
        context.addSparkListener(new EndedStatements(context));
    }

    public void onOtherEvent(SparkListenerEvent event) {
        if (event instanceof SparkListenerThriftServerOperationStart) {
            running.add(((SparkListenerThriftServerOperationStart) event).id());
        } else if (event instanceof SparkListenerThriftServerOperationCanceled) {
            end(((SparkListenerThriftServerOperationCanceled) event).id());
        } else if (event instanceof SparkListenerThriftServerOperationTimeout) {
            end(((SparkListenerThriftServerOperationTimeout) event).id());
        } else if (event instanceof SparkListenerThriftServerOperationError) {
            end(((SparkListenerThriftServerOperationError) event).id());
        } else if (event instanceof SparkListenerThriftServerOperationClosed) {
            end(((SparkListenerThriftServerOperationClosed) event).id());
        }
    }

    public void onJobStart(SparkListenerJobStart job) {
        // HiveServer2 names the group of a statement's jobs as the statement; jobs of the gateway's own have none.
        String statement = job.properties().getProperty("spark.jobGroup.id");
        if (statement != null && !running.contains(statement)) {
            context.cancelJob(job.jobId());
        }
    }

    private void end(String statement) {
        running.remove(statement);
        context.cancelJobGroup(statement);
    }
}
