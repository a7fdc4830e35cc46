package deeplambda.gateway;

import java.util.Arrays;
import java.util.HashSet;
import java.util.Locale;
import java.util.Set;
import org.apache.spark.sql.catalyst.analysis.ExpressionWithUnresolvedIdentifier;
import org.apache.spark.sql.catalyst.analysis.RelationTimeTravel;
import org.apache.spark.sql.catalyst.analysis.UnresolvedFunction;
import org.apache.spark.sql.catalyst.analysis.UnresolvedIdentifier;
import org.apache.spark.sql.catalyst.analysis.UnresolvedRelation;
import org.apache.spark.sql.catalyst.analysis.UnresolvedTable;
import org.apache.spark.sql.catalyst.analysis.UnresolvedTableOrView;
import org.apache.spark.sql.catalyst.analysis.UnresolvedView;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.expressions.PlanExpression;
import org.apache.spark.sql.catalyst.plans.logical.Command;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import org.apache.spark.sql.execution.command.DescribeQueryCommand;
import org.apache.spark.sql.execution.command.ExplainCommand;
import scala.collection.Iterator;
import scala.collection.Seq;

/**
 * The first check: of what a statement says, before any name in it is looked up. RelationGuard is the second.
 *
 * It has to come before analysis, for Spark runs some things while it analyses: CALL, EXECUTE IMMEDIATE, a scalar
 * subquery in TIMESTAMP AS OF, the reading of a file's schema. What is not listed here is refused.
 */
final class StatementGuard extends PlanWalk {
    private static final Set QUERY = setOf(new String[] {
        "Aggregate", "Distinct", "Except", "Filter", "Generate", "GlobalLimit", "Intersect", "Join", "LateralJoin",
        "LimitAll", "LocalLimit", "LocalRelation", "Offset", "OneRowRelation", "PipeOperator", "Pivot", "Project",
        "Range", "RelationTimeTravel", "ResolvedInlineTable", "Sample", "Sort", "SubqueryAlias", "Union", "Unpivot",
        "UnresolvedHaving", "UnresolvedHint", "UnresolvedInlineTable", "UnresolvedRelation",
        "UnresolvedSubqueryColumnAliases", "UnresolvedTVFAliases", "UnresolvedTableValuedFunction", "UnresolvedWith",
        "Window", "WithWindowDefinition",
    });
    private static final Set NAME = setOf(new String[] {
        "CurrentNamespace", "ResolvedNamespace", "UnresolvedFunctionName", "UnresolvedIdentifier", "UnresolvedNamespace",
        "UnresolvedTable", "UnresolvedTableOrView", "UnresolvedView",
    });
    static final Set COMMAND = setOf(new String[] {
        "DescribeColumn", "DescribeColumnCommand", "DescribeDatabaseCommand", "DescribeFunction",
        "DescribeFunctionCommand", "DescribeNamespace", "DescribeQueryCommand", "DescribeRelation",
        "DescribeTableCommand", "ExplainCommand", "SetCatalogAndNamespace", "SetCatalogCommand", "SetNamespaceCommand",
        "ShowCatalogsCommand", "ShowColumns", "ShowColumnsCommand", "ShowCreateTable", "ShowCreateTableCommand",
        "ShowCurrentNamespaceCommand", "ShowFunctions", "ShowFunctionsCommand", "ShowIcebergViews", "ShowNamespaces",
        "ShowNamespacesCommand", "ShowTables", "ShowTablesCommand", "ShowViews", "ShowViewsCommand",
    });

    /** Throws ReadOnlyException unless the parsed statement is one that only reads. */
    static void check(LogicalPlan statement) {
        new StatementGuard().checkStatement(statement);
    }

    private void checkStatement(LogicalPlan statement) {
        if (statement instanceof ExplainCommand) {
            checkStatement(((ExplainCommand) statement).logicalPlan());
        } else if (statement instanceof DescribeQueryCommand) {
            checkStatement(((DescribeQueryCommand) statement).plan());
        } else if (statement instanceof Command && COMMAND.contains(kindOf(statement))) {
            Iterator names = statement.children().iterator();
            while (names.hasNext()) {
                LogicalPlan name = (LogicalPlan) names.next();
                if (!NAME.contains(kindOf(name))) {
                    throw refused(name);
                }
                checkName(name);
            }
        } else {
            walk(statement);
        }
    }

    void visit(LogicalPlan node) {
        if (!QUERY.contains(kindOf(node))) {
            throw refused(node);
        }
        if (node instanceof RelationTimeTravel) {
            visit(((RelationTimeTravel) node).relation());
            checkTime((RelationTimeTravel) node);
        }
        if (node instanceof UnresolvedRelation) {
            UnresolvedRelation relation = (UnresolvedRelation) node;
            if (!relation.options().isEmpty()) {
                throw new ReadOnlyException("WITH (…) options of table " + relation.name() + " were refused");
            }
            if (relation.isStreaming()) {
                throw new ReadOnlyException("STREAM " + relation.name() + " was refused");
            }
        }
        checkName(node);
    }

    void visit(Expression node) {
        if (node instanceof ExpressionWithUnresolvedIdentifier) {
            throw new ReadOnlyException("IDENTIFIER(…) was refused");
        }
        if (node instanceof UnresolvedFunction) {
            String name = (String) ((UnresolvedFunction) node).nameParts().last();
            if (ReadOnlyExtension.FUNCTIONS_REMOVED.contains(name.toLowerCase(Locale.ROOT))) {
                throw new ReadOnlyException("the function " + name + " was refused");
            }
        }
    }

    // A subquery there would run during analysis, before the second check has seen it.
    private static void checkTime(RelationTimeTravel travel) {
        if (travel.timestamp().isDefined()) {
            new PlanWalk() {
                void visit(LogicalPlan node) {}

                void visit(Expression node) {
                    if (node instanceof PlanExpression) {
                        throw new ReadOnlyException("a subquery in TIMESTAMP AS OF was refused");
                    }
                }
            }.walk((LogicalPlan) travel);
        }
    }

    // Iceberg reads the table that lies at a path when a name holds a slash.
    private static void checkName(LogicalPlan node) {
        Seq name = null;
        if (node instanceof UnresolvedRelation) {
            name = ((UnresolvedRelation) node).multipartIdentifier();
        } else if (node instanceof UnresolvedTableOrView) {
            name = ((UnresolvedTableOrView) node).multipartIdentifier();
        } else if (node instanceof UnresolvedTable) {
            name = ((UnresolvedTable) node).multipartIdentifier();
        } else if (node instanceof UnresolvedView) {
            name = ((UnresolvedView) node).multipartIdentifier();
        } else if (node instanceof UnresolvedIdentifier) {
            name = ((UnresolvedIdentifier) node).nameParts();
        }
        if (name != null) {
            Iterator pieces = name.iterator();
            while (pieces.hasNext()) {
                String piece = (String) pieces.next();
                if (piece.indexOf('/') >= 0 || piece.indexOf('\\') >= 0) {
                    throw new ReadOnlyException("reading the path " + piece + " was refused");
                }
            }
        }
    }

    private static ReadOnlyException refused(LogicalPlan node) {
        return new ReadOnlyException(node.nodeName() + " was refused");
    }

    private static String kindOf(LogicalPlan node) {
        String name = node.getClass().getName();
        return name.startsWith("org.apache.spark.sql.") ? node.getClass().getSimpleName().replace("$", "") : name;
    }

    private static Set setOf(String[] names) {
        return new HashSet(Arrays.asList((Object[]) names));
    }
}
