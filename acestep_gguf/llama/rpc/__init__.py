"""Memory of other machines, by ggml's RPC: what a server says of itself, its devices, and the server."""
