package deeplambda.gateway;

import org.apache.spark.sql.catalyst.FunctionIdentifier;
import org.apache.spark.sql.catalyst.analysis.FunctionRegistry$;
import org.apache.spark.sql.catalyst.expressions.ExpressionInfo;
import org.apache.spark.sql.execution.python.UserDefinedPythonFunction;
import scala.collection.immutable.Seq;
import scala.runtime.AbstractFunction1;

/** Functions that every session has which is opened later, as it has Spark's own. */
public final class SharedFunctions {
    private SharedFunctions() {}

    public static void add(String name, String usage, final UserDefinedPythonFunction function) {
        ExpressionInfo info = new ExpressionInfo(
            UserDefinedPythonFunction.class.getName(), null, name, usage, "", "", "", "misc_funcs", "", "", "python_udf");
        FunctionRegistry$.MODULE$.builtin().registerFunction(
            new FunctionIdentifier(name),
            info,
            new AbstractFunction1() {
                public Object apply(Object arguments) {
                    return function.builder((Seq) arguments);
                }
            });
    }
}
