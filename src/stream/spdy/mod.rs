//! SPDY/3.1 as Kubernetes speaks it: framing, header blocks, and streams over one connection. Written for two peers: the
//! Kubernetes API server (moby/spdystream) and kubectl; the same code is the client in `coracle port-forward` and tests.
