package deeplambda.gateway;

import org.apache.spark.SparkThrowable;

/** A statement that an analyst may not run; SQLSTATE 42501, insufficient privilege. */
public final class ReadOnlyException extends RuntimeException implements SparkThrowable {
    private static final String ALLOWED =
        "; this gateway reads only: SELECT over the catalogs lake, mysql and spark_catalog, SHOW, DESCRIBE, EXPLAIN, USE";

    ReadOnlyException(String refused) {
        super(refused + ALLOWED);
    }

    public String getCondition() {
        return "DEEPLAMBDA_READ_ONLY";
    }

    public String getSqlState() {
        return "42501";
    }

    public String toString() {
        return getMessage(); // HiveServer2 puts the condition before it
    }
}
