"""Policies over a network: openpi's websocket protocol, a server and a client of it."""
