package deeplambda.gateway;

import java.util.Arrays;
import java.util.List;
import org.apache.spark.sql.SparkSessionExtensions;
import org.apache.spark.sql.catalyst.FunctionIdentifier;
import org.apache.spark.sql.catalyst.analysis.FunctionRegistry$;
import org.apache.spark.sql.catalyst.analysis.TableFunctionRegistry$;
import org.apache.spark.sql.catalyst.parser.ParserInterface;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import scala.runtime.AbstractFunction1;
import scala.runtime.AbstractFunction2;
import scala.runtime.BoxedUnit;

/** Named in `spark.sql.extensions`, last: its parser then sees what the others made of a statement. */
public final class ReadOnlyExtension extends AbstractFunction1 {
    // They call any Java method, or read files that their options name.
    static final List FUNCTIONS_REMOVED = Arrays.asList((Object[]) new String[] {
        "reflect", "java_method", "try_reflect", "from_xml", "schema_of_xml", "from_protobuf", "to_protobuf",
        "from_avro", "to_avro", "schema_of_avro",
    });

    public Object apply(Object given) {
        SparkSessionExtensions extensions = (SparkSessionExtensions) given;
        for (int i = 0; i < FUNCTIONS_REMOVED.size(); i++) {
            FunctionRegistry$.MODULE$.builtin().dropFunction(new FunctionIdentifier((String) FUNCTIONS_REMOVED.get(i)));
        }
        TableFunctionRegistry$.MODULE$.builtin().dropFunction(new FunctionIdentifier("python_worker_logs"));
        PlainPredicates.register();
        extensions.injectPreCBORule(new AbstractFunction1() {
            public Object apply(Object session) {
                return new Interruptible();
            }
        });
        extensions.injectParser(new AbstractFunction2() {
            public Object apply(Object session, Object parser) {
                return new GuardedParser((ParserInterface) parser);
            }
        });
        extensions.injectCheckRule(new AbstractFunction1() {
            public Object apply(Object session) {
                return new AbstractFunction1() {
                    public Object apply(Object plan) {
                        if (!Trusted.here()) {
                            RelationGuard.check((LogicalPlan) plan);
                        }
                        return BoxedUnit.UNIT;
                    }
                };
            }
        });
        return BoxedUnit.UNIT;
    }
}
