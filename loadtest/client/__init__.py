"""One request over a raw connection: sends it, parses the response, and checks it."""
