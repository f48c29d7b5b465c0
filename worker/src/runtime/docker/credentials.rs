//! Logins as the engine is told them.

use bollard::BollardRequest;
use bollard::auth::DockerCredentials;

use crate::registry::credentials::Login;

/// For the engine's own pull.
pub fn to_engine(login: Login) -> DockerCredentials {
    let Login { username, password, identity_token, registry_token, server } = login;
    DockerCredentials {
        username,
        password,
        identitytoken: identity_token,
        registrytoken: registry_token,
        serveraddress: Some(server),
        ..DockerCredentials::default()
    }
}

/// Engines read the header in the alphabet of URLs and pass over one that they cannot read; bollard writes the other.
pub fn fit_header(mut request: BollardRequest) -> BollardRequest {
    const HEADER: &str = "x-registry-auth";
    if let Some(value) = request.headers().get(HEADER).and_then(|value| value.to_str().ok()) {
        let fit = value.replace('+', "-").replace('/', "_");
        if let Ok(fit) = fit.parse() {
            request.headers_mut().insert(HEADER, fit);
        }
    }
    request
}
