package deeplambda.gateway;

import java.util.HashSet;
import java.util.Iterator;
import java.util.Set;
import org.apache.hadoop.hive.ql.metadata.Hive;
import org.apache.hive.service.cli.CLIService;
import org.apache.hive.service.cli.HiveSQLException;
import org.apache.hive.service.cli.SessionHandle;
import org.apache.hive.service.rpc.thrift.TSessionHandle;
import org.apache.thrift.protocol.TProtocol;
import org.apache.thrift.server.ServerContext;
import org.apache.thrift.server.TServerEventHandler;
import org.apache.thrift.transport.TTransport;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Closes the sessions of a connection that ends. HiveServer2 closes the one that was opened last; the others would keep
 * their places until they had been idle for long enough. A connection has a thread of its own from its beginning to its
 * end.
 */
final class OpenedSessions implements TServerEventHandler {
    private static final Logger LOG = LoggerFactory.getLogger("deeplambda.gateway");

    private final TServerEventHandler given;
    private final CLIService service;
    private final ThreadLocal ofThisConnection = new ThreadLocal(); // a set of TSessionHandle

    OpenedSessions(TServerEventHandler given, CLIService service) {
        this.given = given;
        this.service = service;
    }

    void add(TSessionHandle session) {
        if (session != null) {
            ((Set) ofThisConnection.get()).add(session);
        }
    }

    void remove(TSessionHandle session) {
        ((Set) ofThisConnection.get()).remove(session);
    }

    public void preServe() {
        given.preServe();
    }

    public ServerContext createContext(TProtocol input, TProtocol output) {
        ofThisConnection.set(new HashSet());
        return given.createContext(input, output);
    }

    public void processContext(ServerContext context, TTransport input, TTransport output) {
        given.processContext(context, input, output);
    }

    public void deleteContext(ServerContext context, TProtocol input, TProtocol output) {
        Set left = (Set) ofThisConnection.get();
        if (left == null) { // whoever said no password has no context either
            return;
        }
        for (Iterator each = left.iterator(); each.hasNext(); ) {
            Hive.set(null); // see FrontDoor
            try {
                service.closeSession(new SessionHandle((TSessionHandle) each.next()));
            } catch (HiveSQLException e) {
                LOG.info("a session of a connection that ended was closed already: {}", e.getMessage());
            }
        }
        ofThisConnection.remove();
    }
}
