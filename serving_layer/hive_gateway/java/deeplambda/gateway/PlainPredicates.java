package deeplambda.gateway;

import java.sql.Types;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import java.util.regex.Pattern;
import org.apache.spark.sql.connector.expressions.Expression;
import org.apache.spark.sql.connector.expressions.Literal;
import org.apache.spark.sql.connector.expressions.NamedReference;
import org.apache.spark.sql.connector.expressions.filter.Predicate;
import org.apache.spark.sql.jdbc.JdbcDialects$;
import org.apache.spark.sql.jdbc.MySQLDialect;
import org.apache.spark.sql.types.BooleanType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.DateType;
import org.apache.spark.sql.types.MetadataBuilder;
import org.apache.spark.sql.types.NumericType;
import org.apache.spark.sql.types.StringType;
import org.apache.spark.sql.types.TimestampType;
import scala.Option;

/**
 * Which predicates of a statement MySQL gets to see: comparisons of columns with numbers, times and harmless words.
 * Spark applies the others itself.
 *
 * Spark quotes text without its backslashes, so that a literal could end its quotes in MySQL and go on as SQL; and
 * MySQL compares most text columns without regard to case, which Spark does not.
 */
public final class PlainPredicates extends MySQLDialect {
    private static final Set COMPARISONS = new HashSet(Arrays.asList((Object[]) new String[] {
        "=", "<>", "<", "<=", ">", ">=", "IN", "AND", "OR", "NOT", "IS_NULL", "IS_NOT_NULL", "ALWAYS_TRUE",
        "ALWAYS_FALSE",
    }));
    private static final Set COMPARED_BY_BYTES = new HashSet(Arrays.asList((Object[]) new String[] {
        "application", "event_id",
    }));
    private static final Pattern WORD = Pattern.compile("[A-Za-z0-9_.:-]{1,128}");

    /** Put it in the place of Spark's dialect, which it equals. */
    static void register() {
        JdbcDialects$.MODULE$.registerDialect(new PlainPredicates());
    }

    public Option compileExpression(Expression expression) {
        return isPlain(expression) ? super.compileExpression(expression) : Option.empty();
    }

    // As VARCHAR a view would cast it, and no filter on the view's column would go there.
    public Option getCatalystType(int sqlType, String typeName, int size, MetadataBuilder metadata) {
        return sqlType == Types.VARCHAR
            ? Option.apply(DataTypes.StringType) : super.getCatalystType(sqlType, typeName, size, metadata);
    }

    private static boolean isPlain(Expression expression) {
        if (expression instanceof NamedReference) {
            return true;
        }
        if (expression instanceof Literal) {
            return isPlain((Literal) expression);
        }
        if (!(expression instanceof Predicate) || !COMPARISONS.contains(((Predicate) expression).name())) {
            return false;
        }
        Expression[] children = expression.children();
        boolean text = false;
        boolean comparedByBytes = true;
        for (int i = 0; i < children.length; i++) {
            if (!isPlain(children[i])) {
                return false;
            }
            text |= children[i] instanceof Literal && ((Literal) children[i]).dataType() instanceof StringType;
            comparedByBytes &= !(children[i] instanceof NamedReference)
                || COMPARED_BY_BYTES.contains(((NamedReference) children[i]).fieldNames()[0]);
        }
        String name = ((Predicate) expression).name();
        return !text || comparedByBytes && (name.equals("=") || name.equals("IN"));
    }

    private static boolean isPlain(Literal literal) {
        DataType type = literal.dataType();
        if (type instanceof StringType) {
            return literal.value() != null && WORD.matcher(literal.value().toString()).matches();
        }
        return type instanceof NumericType || type instanceof BooleanType || type instanceof DateType
            || type instanceof TimestampType;
    }
}
