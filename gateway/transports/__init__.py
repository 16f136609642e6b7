"""How documents reach clients: one package per kind of connection, and `common` for the parts that they share."""
