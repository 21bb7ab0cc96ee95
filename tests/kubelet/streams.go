package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

// client is one of a node's API, by client-go, which is what kubectl is made of.
type client struct {
	config    *rest.Config
	server    string
	pod       string
	container string
	websocket bool
}

// streams measures one thing and says it in one line of JSON.
func streams(args []string) error {
	set := flag.NewFlagSet("streams", flag.ContinueOnError)
	dir := set.String("certificates", ".", "folder with client.crt and client.key")
	c := client{}
	set.StringVar(&c.server, "server", "", "https://HOST:PORT of a kubelet")
	set.StringVar(&c.pod, "pod", "default/bench", "NAMESPACE/NAME; in the host's network")
	set.StringVar(&c.container, "container", "main", "")
	set.BoolVar(&c.websocket, "websocket", false, "WebSocket, not SPDY")
	n := set.Int("n", 100, "how many")
	size := set.Int64("bytes", 1<<30, "how much")
	connections := set.Int("connections", 1, "at once")
	if err := set.Parse(args); err != nil {
		return err
	}
	c.config = &rest.Config{
		Host: c.server,
		TLSClientConfig: rest.TLSClientConfig{
			Insecure: true,
			CertFile: filepath.Join(*dir, "client.crt"),
			KeyFile:  filepath.Join(*dir, "client.key"),
		},
	}
	var result any
	var err error
	switch set.Arg(0) {
	case "start":
		result, err = c.start(*n)
	case "down":
		result, err = c.down(*size)
	case "up":
		result, err = c.up(*size)
	case "forward-down":
		result, err = c.forward(*size, *connections, false)
	case "forward-up":
		result, err = c.forward(*size, *connections, true)
	case "idle":
		return c.idle(*n)
	default:
		err = errors.New("usage: streams … start|down|up|forward-down|forward-up|idle")
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// run runs a command in the container to its end.
func (c *client) run(command []string, in io.Reader, out io.Writer) error {
	query := url.Values{"command": command, "output": {"1"}}
	if in != nil {
		query.Set("input", "1")
	}
	where, err := url.Parse(c.server + "/exec/" + c.pod + "/" + c.container + "?" + query.Encode())
	if err != nil {
		return err
	}
	var executor remotecommand.Executor
	if c.websocket {
		executor, err = remotecommand.NewWebSocketExecutor(c.config, "GET", where.String())
	} else {
		executor, err = remotecommand.NewSPDYExecutor(c.config, "POST", where)
	}
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: in, Stdout: out})
}

// counter counts what is written to it, and notes when the first of it came.
type counter struct {
	bytes int64
	first time.Time
}

func (c *counter) Write(data []byte) (int, error) {
	if c.bytes == 0 && len(data) > 0 {
		c.first = time.Now()
	}
	c.bytes += int64(len(data))
	return len(data), nil
}

// start: milliseconds from the dial, with the handshakes of TCP and TLS, to the first byte that a command wrote.
func (c *client) start(n int) ([]float64, error) {
	var times []float64
	for range n {
		begin, out := time.Now(), &counter{}
		if err := c.run([]string{"echo", "on"}, nil, out); err != nil {
			return nil, err
		}
		if out.bytes != 3 {
			return nil, fmt.Errorf("the command said %d bytes, not 3", out.bytes)
		}
		times = append(times, float64(out.first.Sub(begin))/float64(time.Millisecond))
	}
	return times, nil
}

const piece = 64 << 10

// down: bytes a second out of a command.
func (c *client) down(size int64) (float64, error) {
	out := &counter{}
	begin := time.Now()
	command := []string{"dd", "if=/dev/zero", "bs=" + strconv.Itoa(piece), "count=" + strconv.FormatInt(size/piece, 10)}
	if err := c.run(command, nil, out); err != nil {
		return 0, err
	}
	if want := size / piece * piece; out.bytes != want {
		return 0, fmt.Errorf("%d of %d bytes arrived", out.bytes, want)
	}
	return float64(out.bytes) / time.Since(begin).Seconds(), nil
}

// zeros reads as so many of them.
type zeros struct{ left int64 }

func (z *zeros) Read(buffer []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(buffer)), z.left)
	clear(buffer[:n])
	z.left -= n
	return int(n), nil
}

// up: bytes a second into a command.
func (c *client) up(size int64) (float64, error) {
	said := &strings.Builder{}
	begin := time.Now()
	if err := c.run([]string{"sh", "-c", "cat | wc -c"}, &zeros{size}, said); err != nil {
		return 0, err
	}
	if got := strings.TrimSpace(said.String()); got != strconv.FormatInt(size, 10) {
		return 0, fmt.Errorf("%s of %d bytes arrived", got, size)
	}
	return float64(size) / time.Since(begin).Seconds(), nil
}

// forward: bytes a second through forwarded connections, to or from a server in the pod's network, which is the host's.
func (c *client) forward(size int64, connections int, up bool) (float64, error) {
	share := size / int64(connections)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(connection, share, up)
		}
	}()
	where, err := url.Parse(c.server + "/portForward/" + c.pod)
	if err != nil {
		return 0, err
	}
	var dialer httpstream.Dialer
	if c.websocket {
		dialer, err = portforward.NewSPDYOverWebsocketDialer(where, c.config)
	} else {
		var transport http.RoundTripper
		var upgrader spdy.Upgrader
		transport, upgrader, err = spdy.RoundTripperFor(c.config)
		dialer = spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", where)
	}
	if err != nil {
		return 0, err
	}
	session, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return 0, err
	}
	defer session.Close()
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	begin := time.Now()
	var all errgroup.Group
	for id := range connections {
		all.Go(func() error { return through(session, port, strconv.Itoa(id), share, up) })
	}
	if err := all.Wait(); err != nil {
		return 0, err
	}
	return float64(share*int64(connections)) / time.Since(begin).Seconds(), nil
}

// serve is the server: it takes its share and says that it has it, or gives it. It waits for no end: not every node passes on half
// of one.
func serve(connection net.Conn, share int64, up bool) {
	defer connection.Close()
	if up {
		n, _ := io.CopyN(io.Discard, connection, share)
		fmt.Fprintln(connection, n)
		return
	}
	io.CopyBuffer(connection, struct{ io.Reader }{&zeros{share}}, make([]byte, piece))
}

// through is one forwarded connection.
func through(session httpstream.Connection, port, id string, share int64, up bool) error {
	headers := http.Header{}
	headers.Set("streamType", "error")
	headers.Set("port", port)
	headers.Set("requestID", id)
	failure, err := session.CreateStream(headers)
	if err != nil {
		return err
	}
	failure.Close()
	headers.Set("streamType", "data")
	data, err := session.CreateStream(headers)
	if err != nil {
		return err
	}
	got := int64(0)
	if up {
		if _, err := io.CopyBuffer(struct{ io.Writer }{data}, struct{ io.Reader }{&zeros{share}}, make([]byte, piece)); err != nil {
			return err
		}
		if _, err := fmt.Fscanln(bufio.NewReader(data), &got); err != nil {
			return err
		}
	} else if got, err = io.Copy(io.Discard, data); err != nil {
		return err
	}
	data.Close()
	if text, err := io.ReadAll(failure); err != nil || len(text) > 0 {
		return fmt.Errorf("port %s: %q (%v)", port, text, err)
	}
	if got != share {
		return fmt.Errorf("%d of %d bytes arrived", got, share)
	}
	return nil
}

// idle holds connections that were used once until its input ends; it says when it has them.
func (c *client) idle(n int) error {
	config, err := rest.TLSConfigFor(c.config)
	if err != nil {
		return err
	}
	where, err := url.Parse(c.server)
	if err != nil {
		return err
	}
	var all errgroup.Group
	all.SetLimit(8)
	connections := make([]net.Conn, n)
	for i := range n {
		all.Go(func() error {
			connection, err := tls.Dial("tcp", where.Host, config)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			connections[i] = connection
			fmt.Fprintf(connection, "GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n", where.Host)
			answer, err := http.ReadResponse(bufio.NewReader(connection), nil)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			defer answer.Body.Close()
			_, err = io.Copy(io.Discard, answer.Body)
			if err == nil && answer.StatusCode != http.StatusOK {
				err = fmt.Errorf("connection %d: %s", i, answer.Status)
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	fmt.Println("idle")
	_, err = io.Copy(io.Discard, os.Stdin)
	for _, connection := range connections {
		connection.Close()
	}
	return err
}
