package deeplambda.gateway;

import java.io.Serializable;
import org.apache.spark.TaskContext;
import org.apache.spark.sql.catalyst.FunctionIdentifier;
import org.apache.spark.sql.catalyst.analysis.TableFunctionRegistry$;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.expressions.ExpressionInfo;
import org.apache.spark.sql.catalyst.expressions.ScalaUDF;
import org.apache.spark.sql.catalyst.plans.logical.Filter;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import org.apache.spark.sql.types.DataTypes;
import scala.Function1;
import scala.None$;
import scala.Option;
import scala.collection.immutable.Nil$;
import scala.runtime.AbstractFunction0;
import scala.runtime.AbstractFunction1;

/**
 * The table function `range`, so that its tasks end when their query is cancelled. Spark's own does not look when its
 * rows are taken one by one, and `range(1e12)` would go on until memory ends.
 */
final class InterruptibleRange extends AbstractFunction1 {
    static final String CHECK = "task_goes_on";
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
        Expression goesOn = new ScalaUDF(
            new TaskGoesOn(), DataTypes.BooleanType, (scala.collection.immutable.Seq) Nil$.MODULE$,
            (scala.collection.immutable.Seq) Nil$.MODULE$, None$.MODULE$, Option.apply(CHECK), false, false);
        return new Filter(goesOn, (LogicalPlan) builder.apply(arguments));
    }

    private static final class TaskGoesOn extends AbstractFunction0 implements Serializable {
        public Object apply() {
            TaskContext.get().killTaskIfInterrupted();
            return Boolean.TRUE;
        }
    }
}
