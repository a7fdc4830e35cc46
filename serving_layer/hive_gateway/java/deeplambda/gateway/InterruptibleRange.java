package deeplambda.gateway;

import org.apache.spark.TaskContext;
import org.apache.spark.sql.catalyst.FunctionIdentifier;
import org.apache.spark.sql.catalyst.analysis.TableFunctionRegistry$;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.expressions.ExpressionInfo;
import org.apache.spark.sql.catalyst.expressions.objects.StaticInvoke;
import org.apache.spark.sql.catalyst.plans.logical.Filter;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import org.apache.spark.sql.types.DataTypes;
import scala.Function1;
import scala.Option;
import scala.collection.immutable.Nil$;
import scala.collection.immutable.Seq;
import scala.runtime.AbstractFunction1;

/**
 * The table function `range`, so that its tasks end when their query is cancelled. Spark's own does not look when its
 * rows are taken one by one, and `range(1e12)` would go on until memory ends.
 */
public final class InterruptibleRange extends AbstractFunction1 {
    private static final FunctionIdentifier RANGE = new FunctionIdentifier("range");

    private final Function1 builder;

    private InterruptibleRange(Function1 builder) {
        this.builder = builder;
    }

    static void replaceBuiltin() {
        Option builder = TableFunctionRegistry$.MODULE$.builtin().lookupFunctionBuilder(RANGE);
        Option info = TableFunctionRegistry$.MODULE$.builtin().lookupFunction(RANGE);
        TableFunctionRegistry$.MODULE$.builtin().dropFunction(RANGE);
        TableFunctionRegistry$.MODULE$.builtin().registerFunction(
            RANGE, (ExpressionInfo) info.get(), new InterruptibleRange((Function1) builder.get()));
    }

    public Object apply(Object arguments) {
        Seq none = (Seq) Nil$.MODULE$;
        Expression goesOn = new StaticInvoke(
            InterruptibleRange.class, DataTypes.BooleanType, "taskGoesOn", none, none, false, false, false, Option.empty());
        return new Filter(goesOn, (LogicalPlan) builder.apply(arguments));
    }

    /** True, unless the task has been told to end: then it does. */
    public static boolean taskGoesOn() {
        TaskContext.get().killTaskIfInterrupted();
        return true;
    }
}
