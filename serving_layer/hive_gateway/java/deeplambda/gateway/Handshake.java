package deeplambda.gateway;

import java.lang.reflect.Field;
import org.apache.thrift.TConfiguration;
import org.apache.thrift.server.TServer;
import org.apache.thrift.transport.TSocket;
import org.apache.thrift.transport.TTransport;
import org.apache.thrift.transport.TTransportException;
import org.apache.thrift.transport.TTransportFactory;

/**
 * Bounds what a client may take before it has said a password: a thread of the gateway's for ten seconds, and messages
 * of 64 KiB. Thrift would wait for ever, and set aside as much as a message says that it has, up to 100 MB.
 *
 * <p>Afterwards a connection on which nothing is said for as long as an idle session may last is closed.
 */
final class Handshake extends TTransportFactory {
    private static final int WITHIN_MS = 10000;
    private static final int MESSAGE_BYTES = 64 * 1024;

    private final TTransportFactory authenticating;
    private final int idleMs;

    private Handshake(TTransportFactory authenticating, int idleMs) {
        this.authenticating = authenticating;
        this.idleMs = idleMs;
    }

    static void bound(TServer server, int idleMs) {
        try {
            Field input = GatewayServer.field(TServer.class, "inputTransportFactory_");
            // The output's is called second, and hands out the transport that the input's has made.
            input.set(server, new Handshake((TTransportFactory) input.get(server), idleMs));
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException("not the Thrift that this was written for", e);
        }
    }

    public TTransport getTransport(TTransport client) throws TTransportException {
        TSocket socket = (TSocket) client;
        TConfiguration configuration = client.getConfiguration();
        int messageBytes = configuration.getMaxMessageSize();
        socket.setTimeout(WITHIN_MS);
        configuration.setMaxMessageSize(MESSAGE_BYTES);
        TTransport opened = authenticating.getTransport(client);
        configuration.setMaxMessageSize(messageBytes);
        opened.updateKnownMessageSize(-1); // what it may read from now on
        socket.setTimeout(idleMs);
        return opened;
    }
}
