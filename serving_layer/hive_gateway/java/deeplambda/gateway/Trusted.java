package deeplambda.gateway;

/** The threads whose statements are the gateway's own. */
public final class Trusted {
    // Not inheritable: a pool thread of HiveServer2 that a trusted thread happens to start must not be trusted.
    private static final ThreadLocal MARK = new ThreadLocal();

    private Trusted() {}

    public static void trustThisThread() {
        MARK.set(Boolean.TRUE);
    }

    static boolean here() {
        return MARK.get() != null;
    }
}
