"""The teacher as a service: the server, and the worker processes in which its teachers compute. No torch in it."""
