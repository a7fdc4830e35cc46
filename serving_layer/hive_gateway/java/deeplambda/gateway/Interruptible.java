package deeplambda.gateway;

import org.apache.spark.TaskContext;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.expressions.objects.StaticInvoke;
import org.apache.spark.sql.catalyst.plans.logical.Expand;
import org.apache.spark.sql.catalyst.plans.logical.Filter;
import org.apache.spark.sql.catalyst.plans.logical.Generate;
import org.apache.spark.sql.catalyst.plans.logical.Join;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import org.apache.spark.sql.catalyst.plans.logical.Range;
import org.apache.spark.sql.catalyst.rules.Rule;
import org.apache.spark.sql.catalyst.trees.TreeNode;
import org.apache.spark.sql.types.DataTypes;
import scala.Function1;
import scala.Option;
import scala.collection.immutable.Nil$;
import scala.collection.immutable.Seq;
import scala.runtime.AbstractPartialFunction;

/**
 * Tasks that end when their query is cancelled or meets the time limit. Spark's generated loops do not look: a join of
 * a few small tables, or `range(1e12)`, would keep its cores until the gateway ends. So wherever rows multiply, a filter
 * looks at each; it costs some nanoseconds a row.
 */
public final class Interruptible extends Rule {
    public TreeNode apply(TreeNode plan) {
        return ((LogicalPlan) plan).transformUp(new AbstractPartialFunction() {
            public boolean isDefinedAt(Object node) {
                return node instanceof Join || node instanceof Generate || node instanceof Expand
                    || node instanceof Range;
            }

            public Object applyOrElse(Object node, Function1 otherwise) {
                return isDefinedAt(node) ? new Filter(taskGoesOn(), (LogicalPlan) node) : otherwise.apply(node);
            }
        });
    }

    private static Expression taskGoesOn() {
        Seq none = (Seq) Nil$.MODULE$;
        return new StaticInvoke(
            Interruptible.class, DataTypes.BooleanType, "goesOn", none, none, false, false, false, Option.empty());
    }

    /** True, unless the task has been told to end: then it does. */
    public static boolean goesOn() {
        TaskContext.get().killTaskIfInterrupted();
        return true;
    }
}
