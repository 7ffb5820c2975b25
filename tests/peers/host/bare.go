package host

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Bare is the binary without go-plugin around it: to look at its very output.
type Bare struct {
	Cmd    *exec.Cmd
	Line   string // first line of stdout, without newline
	Socket string // from that line

	stderr lockedBuffer
	exited chan error
}

type lockedBuffer struct {
	mutex  sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(data []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.Write(data)
}

func (b *lockedBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.String()
}

// StartBare starts the binary as a plugin of some type and reads its line. Environment
// variables are "NAME=value". It is killed at the end of the test if it still runs.
func StartBare(t testing.TB, pluginType string, env ...string) *Bare {
	t.Helper()
	b := &Bare{Cmd: exec.Command(Binary(t)), exited: make(chan error, 1)}
	b.Cmd.Env = append(append(os.Environ(), pluginType+"="+pluginType), env...)
	b.Cmd.Stderr = &b.stderr
	stdout, err := b.Cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.Cmd.Process.Kill()
		_ = os.Remove(b.Socket)
	})
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	b.Line = strings.TrimSuffix(line, "\n")
	if fields := strings.Split(b.Line, "|"); len(fields) > 3 {
		b.Socket = fields[3]
	}
	go func() { b.exited <- b.Cmd.Wait() }()
	return b
}

// Stderr so far; all of it after Wait.
func (b *Bare) Stderr() string {
	return b.stderr.String()
}

// Wait for its end and return the exit status (-1: a signal).
func (b *Bare) Wait() int {
	<-b.exited
	return b.Cmd.ProcessState.ExitCode()
}

// Dial its socket with gRPC.
func (b *Bare) Dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	return Dial(t, b.Socket)
}

// Dial a socket with gRPC, whatever characters its path has.
func Dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	conn, err := grpc.NewClient("passthrough:///plugin", grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Raw connects to a socket without speaking HTTP/2.
func Raw(t testing.TB, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
