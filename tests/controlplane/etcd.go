package main

import "go.etcd.io/etcd/server/v3/etcdmain"

// With etcd's own flags, so that kubeadm's manifest of it runs as it is.
func etcd(args []string) {
	etcdmain.Main(args)
}
