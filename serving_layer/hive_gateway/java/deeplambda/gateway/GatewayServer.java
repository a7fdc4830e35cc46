package deeplambda.gateway;

import java.lang.reflect.Field;
import java.util.List;
import org.apache.hadoop.hive.conf.HiveConf;
import org.apache.hive.service.CompositeService;
import org.apache.hive.service.cli.CLIService;
import org.apache.hive.service.server.HiveServer2;
import org.apache.spark.network.util.JavaUtils;
import org.apache.spark.sql.classic.SparkSession;
import org.apache.spark.sql.hive.thriftserver.HiveThriftServer2;
import org.apache.spark.sql.hive.thriftserver.HiveThriftServer2$;
import org.apache.spark.sql.hive.thriftserver.ui.HiveThriftServer2EventManager;

/**
 * Spark's HiveServer2 over a session of ours, as HiveThriftServer2.startWithSparkSession starts it, but without the
 * in-memory metastore and the history of statements that it keeps for a web page, and behind a front door of ours.
 */
public final class GatewayServer {
    private GatewayServer() {}

    public static HiveThriftServer2 start(SparkSession session) throws Exception {
        HiveConf conf = new HiveConf(session.sessionState().newHadoopConf(), HiveConf.class);
        HiveThriftServer2$.MODULE$.systemExitOnError().set(true);
        HiveThriftServer2$.MODULE$.eventManager_$eq(new HiveThriftServer2EventManager(session.sparkContext()));
        HiveThriftServer2 server = new HiveThriftServer2(session);
        server.init(conf);
        CLIService service = (CLIService) field(HiveServer2.class, "cliService").get(server);
        replaceFrontDoor(server, service, conf);
        long limitS = JavaUtils.timeStringAsSec(session.conf().get("spark.sql.thriftServer.queryTimeout"));
        Overdue.watch(session.sparkContext(), service.getSessionManager(), limitS);
        server.start();
        HeapGuard.watch(session.sparkContext());
        DiskGuard.watch(session.sparkContext());
        EndedStatements.watch(session.sparkContext());
        return server;
    }

    private static void replaceFrontDoor(HiveThriftServer2 server, CLIService service, HiveConf conf)
            throws ReflectiveOperationException {
        Field thriftService = field(HiveServer2.class, "thriftCLIService");
        FrontDoor door = new FrontDoor(service);
        door.init(conf);
        List services = (List) field(CompositeService.class, "serviceList").get(server);
        services.set(services.indexOf(thriftService.get(server)), door);
        thriftService.set(server, door);
    }

    /** A field of a library's, which it does not give access to. */
    static Field field(Class of, String name) throws ReflectiveOperationException {
        Field found = of.getDeclaredField(name);
        found.setAccessible(true);
        return found;
    }
}
