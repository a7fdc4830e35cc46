package deeplambda.gateway;

import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.plans.logical.Command;
import org.apache.spark.sql.catalyst.plans.logical.LeafNode;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import org.apache.spark.sql.connector.catalog.CatalogPlugin;
import org.apache.spark.sql.execution.datasources.v2.DataSourceV2Relation;

/**
 * The second check: of what the names in a statement stand for, once they are looked up. It sees into views, which
 * StatementGuard, the first, cannot.
 */
final class RelationGuard extends PlanWalk {
    private static final Set LEAVES = setOf(new String[] {
        "CTERelationRef", "LocalRelation", "OneRowRelation", "Range", "ResolvedInlineTable", "UnionLoopRef",
    });
    private static final Set CATALOGS = setOf(new String[] {"lake", "mysql", "spark_catalog"});
    private static final Set NODES_REFUSED = setOf(new String[] {
        "ArrowEvalPythonUDTF", "AttachDistributedSequence", "BatchEvalPythonUDTF", "CollectMetrics",
        "FlatMapGroupsInArrow", "FlatMapGroupsInPandas", "MapInArrow", "MapInPandas", "ScriptTransformation",
    });
    private static final Set EXPRESSIONS_REFUSED = setOf(new String[] {
        "CallMethodViaReflection", "FromProtobuf", "HiveGenericUDF", "HiveGenericUDTF", "HiveSimpleUDF",
        "HiveUDAFFunction", "PythonUDTF", "ScalaUDAF", "ScalaUDF", "SchemaOfXml", "ToProtobuf", "TryReflect",
        "XmlToStructs",
    });

    /** Throws ReadOnlyException unless the analysed plan reads only the platform's tables. */
    static void check(LogicalPlan plan) {
        if (plan instanceof Command) {
            if (!StatementGuard.COMMAND.contains(plan.getClass().getSimpleName())) {
                throw new ReadOnlyException(plan.nodeName() + " was refused");
            }
        } else {
            new RelationGuard().walk(plan);
        }
    }

    void visit(LogicalPlan node) {
        String kind = node.getClass().getSimpleName().replace("$", "");
        if (node instanceof DataSourceV2Relation) {
            checkTable((DataSourceV2Relation) node);
        } else if (node instanceof LeafNode && !LEAVES.contains(kind)) {
            throw new ReadOnlyException("reading " + node.nodeName() + " was refused");
        } else if (node instanceof Command || NODES_REFUSED.contains(kind)) {
            throw new ReadOnlyException(node.nodeName() + " was refused");
        }
    }

    void visit(Expression node) {
        if (EXPRESSIONS_REFUSED.contains(node.getClass().getSimpleName())) {
            throw new ReadOnlyException("the function " + node.prettyName() + " was refused");
        }
    }

    private static void checkTable(DataSourceV2Relation relation) {
        String table = relation.table().getClass().getName();
        boolean known = table.startsWith("org.apache.iceberg.spark.")
            || table.equals("org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTable");
        boolean named = relation.catalog().isDefined()
            && CATALOGS.contains(((CatalogPlugin) relation.catalog().get()).name())
            && relation.identifier().isDefined()
            && !relation.identifier().get().getClass().getSimpleName().equals("PathIdentifier");
        if (!known || !named) {
            throw new ReadOnlyException("reading " + relation.name() + " was refused");
        }
    }

    private static Set setOf(String[] names) {
        return new HashSet(Arrays.asList((Object[]) names));
    }
}
