package wire

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
)

// go-plugin kills what has not ended within two seconds. A busy machine may take as long, but not
// every time.
func TestShutdownEndsItWhateverIsOpen(t *testing.T) {
	var took time.Duration
	for range 5 {
		b := host.StartBare(t, "KeyManager")
		conn := b.Dial(t)
		stream(t, conn, brokerMethod)
		stream(t, conn, stdioMethod)
		stream(t, b.Dial(t), stdioMethod)
		host.Raw(t, b.Socket) // says nothing
		if _, err := host.Raw(t, b.Socket).Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		shutdown(t, b)
		if took = time.Since(started); took <= 2*time.Second {
			return
		}
	}
	t.Errorf("it took %v, and never less than go-plugin's two seconds", took)
}

func TestShutdownUnderLoadEndsWell(t *testing.T) {
	for range 5 {
		b := host.StartBare(t, "BundlePublisher")
		conn := b.Dial(t)
		expectHealthy(t, conn)
		var callers sync.WaitGroup
		answers := make(chan error, 1<<16)
		for range 16 {
			callers.Go(func() {
				for {
					_, err := host.Invoke(context.Background(), conn, "/grpc.health.v1.Health/Check", nil)
					answers <- err
					if err != nil {
						return
					}
				}
			})
		}
		for range 200 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		shutdown(t, b)
		callers.Wait()
		close(answers)
		for err := range answers {
			if err != nil && status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
				t.Error(err)
			}
		}
	}
}

func TestHangUpInterruptAndUserSignalsAreIgnored(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	for _, signal := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE} {
		if err := p.Signal(signal); err != nil {
			t.Error(err)
		}
	}
	expectHealthy(t, p.Conn)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if line, ok := p.Logs.Find("asked to end"); ok {
		t.Errorf("it took a signal for SIGTERM: %v", line)
	}
}

func TestAfterSigtermItServesUntilShutdown(t *testing.T) {
	p := host.Start(t, host.Options{Type: "KeyManager"})
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.Logs.Wait(t, "asked to end")
	expectHealthy(t, p.Conn)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, ok := p.Logs.Find("SIGTERM"); ok {
		t.Error("it stopped before Shutdown")
	}
}

func TestAfterSigtermItEndsWithoutShutdownToo(t *testing.T) {
	b := host.StartBare(t, "KeyManager")
	stream(t, b.Dial(t), stdioMethod)
	if err := b.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, b)
}

func TestItEndsWhenTheHostHasDied(t *testing.T) {
	parent := exec.Command("/bin/sh", "-c", `"$SPIRE_HSM" & echo pid $!; wait`)
	parent.Env = append(os.Environ(), "SPIRE_HSM="+host.Binary(t), "KeyManager=KeyManager")
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	errRead, errWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	parent.Stdout, parent.Stderr = outWrite, errWrite
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	outWrite.Close()
	errWrite.Close()
	out := make([]byte, 0, 1024)
	for bytes.Count(out, []byte("\n")) < 2 {
		chunk := make([]byte, 1024)
		n, err := outRead.Read(chunk)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, chunk[:n]...)
	}
	socket := regexp.MustCompile(`unix\|([^|]+)\|`).FindSubmatch(out)
	if socket == nil {
		t.Fatalf("%q", out)
	}
	stream(t, host.Dial(t, string(socket[1])), stdioMethod)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	var rest bytes.Buffer
	_, _ = rest.ReadFrom(errRead) // to its end, which is the plugin's
	if !strings.Contains(rest.String(), "the host has ended") {
		t.Errorf("%q", rest.String())
	}
	expectNoSocket(t, string(socket[1]))
}

func TestItIsStartedByHostsThatAreLaterReplaced(t *testing.T) {
	first := host.Start(t, host.Options{Type: "Notifier"})
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if state := first.State(); state == nil || !state.Success() {
		t.Errorf("%v", state)
	}
	expectHealthy(t, host.Start(t, host.Options{Type: "Notifier"}).Conn)
}
