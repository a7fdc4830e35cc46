package deeplambda.spark;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.attribute.PosixFilePermission;
import java.util.EnumSet;
import java.util.Set;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager;

/**
 * A stream's checkpoint on this machine, for {@code spark.sql.streaming.checkpointFileManagerClass}.
 *
 * <p>Hadoop's own local file system starts a process for the permissions of each file, several in a micro-batch, which
 * takes half of a small one's time. Renames are atomic here as there.
 */
public class LocalCheckpoints extends FileSystemBasedCheckpointFileManager {
    public LocalCheckpoints(Path path, Configuration configuration) {
        super(path, withOwnFiles(configuration));
    }

    private static Configuration withOwnFiles(Configuration configuration) {
        Configuration own = new Configuration(configuration);
        own.set("fs.file.impl", OwnFiles.class.getName());
        own.setBoolean("fs.file.impl.disable.cache", true);
        return own;
    }

    /** Local files whose permissions are set by a system call. */
    public static class OwnFiles extends RawLocalFileSystem {
        public void setPermission(Path path, FsPermission permission) throws IOException {
            PosixFilePermission[] highestBitFirst = PosixFilePermission.values();
            Set wanted = EnumSet.noneOf(PosixFilePermission.class);
            for (int i = 0; i < highestBitFirst.length; i++) {
                if ((permission.toShort() & (0400 >> i)) != 0) {
                    wanted.add(highestBitFirst[i]);
                }
            }
            Files.setPosixFilePermissions(pathToFile(path).toPath(), wanted);
        }
    }
}
