package deeplambda.gateway;

import java.lang.reflect.Field;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.hadoop.hive.conf.HiveConf;
import org.apache.hadoop.hive.ql.metadata.Hive;
import org.apache.hive.service.cli.CLIService;
import org.apache.hive.service.cli.HiveSQLException;
import org.apache.hive.service.cli.thrift.ThriftBinaryCLIService;
import org.apache.hive.service.rpc.thrift.TCloseSessionReq;
import org.apache.hive.service.rpc.thrift.TCloseSessionResp;
import org.apache.hive.service.rpc.thrift.TExecuteStatementReq;
import org.apache.hive.service.rpc.thrift.TExecuteStatementResp;
import org.apache.hive.service.rpc.thrift.TFetchResultsReq;
import org.apache.hive.service.rpc.thrift.TFetchResultsResp;
import org.apache.hive.service.rpc.thrift.TGetColumnsReq;
import org.apache.hive.service.rpc.thrift.TGetColumnsResp;
import org.apache.hive.service.rpc.thrift.TGetFunctionsReq;
import org.apache.hive.service.rpc.thrift.TGetFunctionsResp;
import org.apache.hive.service.rpc.thrift.TGetOperationStatusReq;
import org.apache.hive.service.rpc.thrift.TGetOperationStatusResp;
import org.apache.hive.service.rpc.thrift.TGetResultSetMetadataReq;
import org.apache.hive.service.rpc.thrift.TGetResultSetMetadataResp;
import org.apache.hive.service.rpc.thrift.TGetSchemasReq;
import org.apache.hive.service.rpc.thrift.TGetSchemasResp;
import org.apache.hive.service.rpc.thrift.TGetTablesReq;
import org.apache.hive.service.rpc.thrift.TGetTablesResp;
import org.apache.hive.service.rpc.thrift.TOpenSessionReq;
import org.apache.hive.service.rpc.thrift.TOpenSessionResp;
import org.apache.hive.service.rpc.thrift.TStatus;
import org.apache.thrift.TException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What HiveServer2's clients talk to: takes no settings from them, and tells them of an error in a sentence.
 *
 * <p>The end of a session closes the metastore client that its thread used last, and Spark leaves the one that all
 * sessions share with every thread: so threads are made to forget it. A thread without one makes its own, and the first
 * to do so would register Hive's functions, some of whose classes Spark does not ship; the session would never end.
 */
final class FrontDoor extends ThriftBinaryCLIService {
    private static final Logger LOG = LoggerFactory.getLogger("deeplambda.gateway");
    // The platform's own errors, raised in a Python worker, stand at the end of a traceback.
    private static final Pattern OURS = Pattern.compile("(?m)^deeplambda\\.errors\\.(\\w+: .*)$");
    private static final Pattern STACK = Pattern.compile("(?s)\n+(Driver stacktrace:|\\s+at |JVM stacktrace:).*");
    private static final String TIMED_OUT =
            "The query was ended at the gateway's time limit; ask for less, with a filter, an aggregate or LIMIT";

    private static final String TOO_MANY =
            "The gateway has as many sessions open as it may; close some of yours, or try again in a minute";
    private static final int SESSIONS = 128; // each a session of Spark's; twice as many as connections

    private static final String NOT_PLAIN =
            "A pattern is letters, digits, _ for one character and up to four % for any; look names up with it";
    // HiveServer2 makes a regular expression of a pattern, and of some it would never be done. JDBC escapes _ and %.
    private static final Pattern PLAIN =
            Pattern.compile("\\*|(?:[^%\\\\*+?|^(){}\\[\\]]|\\\\[_%])*(?:%(?:[^%\\\\*+?|^(){}\\[\\]]|\\\\[_%])*){0,4}");
    private static final int PATTERN_CHARACTERS = 256;

    private OpenedSessions opened;

    FrontDoor(CLIService service) {
        super(service);
        haveHivesFunctionsRegistered();
    }

    private static void haveHivesFunctionsRegistered() {
        try {
            Field state = GatewayServer.field(Hive.class, "didRegisterAllFuncs");
            ((AtomicInteger) state.get(null)).set(GatewayServer.field(Hive.class, "REG_FUNCS_DONE").getInt(null));
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException("not the Hive that this was written for", e);
        }
    }

    protected void initializeServer() {
        opened = new OpenedSessions(serverEventHandler, cliService);
        serverEventHandler = opened;
        super.initializeServer();
        HiveConf.ConfVars idle = HiveConf.ConfVars.HIVE_SERVER2_IDLE_SESSION_TIMEOUT;
        Handshake.bound(server, (int) HiveConf.getTimeVar(getHiveConf(), idle, TimeUnit.MILLISECONDS));
    }

    /**
     * HiveServer2 would apply what a client sends along to the Spark session, and even to the JVM's system properties.
     * Only the database to start in is let through.
     */
    public TOpenSessionResp OpenSession(TOpenSessionReq request) throws TException {
        if (cliService.getSessionManager().getOpenSessionCount() >= SESSIONS) {
            TOpenSessionResp refused = new TOpenSessionResp();
            refused.setServerProtocolVersion(request.getClient_protocol());
            refused.setStatus(refusal(TOO_MANY));
            return refused;
        }
        Map kept = new HashMap();
        if (request.getConfiguration() != null && request.getConfiguration().containsKey("use:database")) {
            kept.put("use:database", request.getConfiguration().get("use:database"));
        }
        request.setConfiguration(kept);
        TOpenSessionResp response = super.OpenSession(request);
        opened.add(response.getSessionHandle());
        Hive.set(null);
        shorten(response.getStatus());
        return response;
    }

    public TCloseSessionResp CloseSession(TCloseSessionReq request) throws TException {
        Hive.set(null);
        opened.remove(request.getSessionHandle());
        return super.CloseSession(request);
    }

    public TGetSchemasResp GetSchemas(TGetSchemasReq request) throws TException {
        if (!arePlain(new String[] {request.getSchemaName()})) {
            return new TGetSchemasResp(refusal(NOT_PLAIN));
        }
        return super.GetSchemas(request);
    }

    public TGetTablesResp GetTables(TGetTablesReq request) throws TException {
        if (!arePlain(new String[] {request.getSchemaName(), request.getTableName()})) {
            return new TGetTablesResp(refusal(NOT_PLAIN));
        }
        return super.GetTables(request);
    }

    public TGetColumnsResp GetColumns(TGetColumnsReq request) throws TException {
        if (!arePlain(new String[] {request.getSchemaName(), request.getTableName(), request.getColumnName()})) {
            return new TGetColumnsResp(refusal(NOT_PLAIN));
        }
        return super.GetColumns(request);
    }

    public TGetFunctionsResp GetFunctions(TGetFunctionsReq request) throws TException {
        if (!arePlain(new String[] {request.getSchemaName(), request.getFunctionName()})) {
            return new TGetFunctionsResp(refusal(NOT_PLAIN));
        }
        return super.GetFunctions(request);
    }

    private static boolean arePlain(String[] patterns) {
        for (int i = 0; i < patterns.length; i++) {
            String pattern = patterns[i];
            if (pattern != null && !(pattern.length() <= PATTERN_CHARACTERS && PLAIN.matcher(pattern).matches())) {
                return false;
            }
        }
        return true;
    }

    private static TStatus refusal(String message) {
        TStatus status = HiveSQLException.toTStatus(new HiveSQLException(message));
        shorten(status);
        return status;
    }

    public TExecuteStatementResp ExecuteStatement(TExecuteStatementReq request) throws TException {
        request.setConfOverlay(new HashMap());
        Overdue.begins();
        try {
            TExecuteStatementResp response = super.ExecuteStatement(request);
            shorten(response.getStatus());
            return response;
        } finally {
            Overdue.ended();
            Hive.set(null);
        }
    }

    public TGetOperationStatusResp GetOperationStatus(TGetOperationStatusReq request) throws TException {
        TGetOperationStatusResp response = super.GetOperationStatus(request);
        if (response.getErrorMessage() != null) {
            response.setErrorMessage(sentence(response.getErrorMessage()));
        }
        return response;
    }

    public TGetResultSetMetadataResp GetResultSetMetadata(TGetResultSetMetadataReq request) throws TException {
        TGetResultSetMetadataResp response = super.GetResultSetMetadata(request);
        shorten(response.getStatus());
        return response;
    }

    public TFetchResultsResp FetchResults(TFetchResultsReq request) throws TException {
        TFetchResultsResp response = super.FetchResults(request);
        shorten(response.getStatus());
        return response;
    }

    private static void shorten(TStatus status) {
        if (status.getErrorMessage() != null) {
            String sentence = sentence(status.getErrorMessage());
            LOG.info("{}", sentence.split("\n", 2)[0]);
            status.setErrorMessage(sentence);
            status.setInfoMessages(null); // the server's stack, frame by frame
        }
    }

    static String sentence(String message) {
        if (message.contains("found TIMEDOUT")) {
            return TIMED_OUT;
        }
        String found = null;
        Matcher ours = OURS.matcher(message);
        while (ours.find()) {
            found = ours.group(1);
        }
        return found != null ? "Error running query: " + found : STACK.matcher(message).replaceFirst("");
    }
}
