package deeplambda.gateway;

import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.catalyst.expressions.PlanExpression;
import org.apache.spark.sql.catalyst.plans.logical.LogicalPlan;
import org.apache.spark.sql.catalyst.trees.TreeNode;
import scala.collection.Iterator;

/** Visits every node of a plan, those of its common table expressions and subqueries too, and every expression. */
abstract class PlanWalk {
    abstract void visit(LogicalPlan node);

    abstract void visit(Expression node);

    final void walk(LogicalPlan plan) {
        visit(plan);
        walkPlans(plan.children().iterator());
        walkPlans(plan.innerChildren().iterator());
        Iterator expressions = plan.expressions().iterator();
        while (expressions.hasNext()) {
            walk((Expression) expressions.next());
        }
    }

    private void walkPlans(Iterator plans) {
        while (plans.hasNext()) {
            Object plan = plans.next();
            if (plan instanceof LogicalPlan) {
                walk((LogicalPlan) plan);
            } else {
                throw new ReadOnlyException(((TreeNode) plan).nodeName() + " was refused");
            }
        }
    }

    private void walk(Expression expression) {
        visit(expression);
        if (expression instanceof PlanExpression) {
            walk((LogicalPlan) ((PlanExpression) expression).plan());
        }
        Iterator children = expression.children().iterator();
        while (children.hasNext()) {
            walk((Expression) children.next());
        }
    }
}
