package deeplambda.gateway;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import javax.security.sasl.AuthenticationException;
import org.apache.hive.service.auth.PasswdAuthenticationProvider;

/** Lets in the account `analyst`, by the password in the environment. */
public final class AnalystLogin implements PasswdAuthenticationProvider {
    private static final String PASSWORD = System.getenv("DEEPLAMBDA_GATEWAY_PASSWORD");

    public void Authenticate(String user, String password) throws AuthenticationException {
        boolean right = PASSWORD != null && PASSWORD.length() > 0 && "analyst".equals(user) && password != null
            && MessageDigest.isEqual(
                PASSWORD.getBytes(StandardCharsets.UTF_8), password.getBytes(StandardCharsets.UTF_8));
        if (!right) {
            throw new AuthenticationException("user or password is wrong; connect as user analyst");
        }
    }
}
