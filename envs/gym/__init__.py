"""`gym/<id>`: Gymnasium environments."""
