// Kubernetes' own control plane in one program, for coracle's cluster tests: the published modules, built as they are.
//
// Which program it is says its name (as kubeadm's images call them: a link per name), or else its first argument.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app/cmd"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	_ "k8s.io/kubernetes/pkg/features"
)

// Made on demand: each registers its feature gates and metrics with the process, and two of them would clash.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
	"kubeadm":                 func() *cobra.Command { return kubeadm.NewKubeadmCommand(os.Stdin, os.Stdout, os.Stderr) },
	"etcd":                    nil,
}

func main() {
	name := filepath.Base(os.Args[0])
	command, known := programs[name]
	if !known && len(os.Args) > 1 {
		name = os.Args[1]
		if command, known = programs[name]; known {
			os.Args = append([]string{name}, os.Args[2:]...)
		}
	}
	switch {
	case !known:
		fmt.Fprintln(os.Stderr, "usage: controlplane kube-apiserver|kube-controller-manager|kube-scheduler|kube-proxy|kubectl|kubeadm|etcd …")
		os.Exit(2)
	case command == nil:
		etcd(os.Args)
	default:
		os.Exit(cli.Run(command()))
	}
}
