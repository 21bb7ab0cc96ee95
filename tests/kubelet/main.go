// The kubelet, and a client for what kubelets stream, for coracle's benchmark of streams: the published modules, built as they are.
package main

import (
	"context"
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

func main() {
	name := ""
	if len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = append([]string{name}, os.Args[2:]...)
	}
	switch name {
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "certificates":
		exit(certificates(os.Args[1:]))
	case "streams":
		exit(streams(os.Args[1:]))
	default:
		fmt.Fprintln(os.Stderr, "usage: kubelet kubelet|certificates|streams …")
		os.Exit(2)
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
