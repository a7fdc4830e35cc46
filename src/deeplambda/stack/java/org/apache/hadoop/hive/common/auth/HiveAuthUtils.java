package org.apache.hadoop.hive.common.auth;

import java.net.InetSocketAddress;
import org.apache.thrift.transport.TServerSocket;
import org.apache.thrift.transport.TTransportException;

/**
 * Stands in the class path before Hive's class of this name. The metastore asks it for a socket on no host in
 * particular, which Hive 2.3 takes for every address of the machine and cannot be told otherwise; this one takes it
 * for the host of the system property `deeplambda.metastore.host`.
 */
public class HiveAuthUtils {
    public static TServerSocket getServerSocket(String host, int port) throws TTransportException {
        String bound = host == null ? System.getProperty("deeplambda.metastore.host") : host;
        return new TServerSocket(new InetSocketAddress(bound, port));
    }
}
