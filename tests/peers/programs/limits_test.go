package programs

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// limited to so many open files, as by a shell or a unit.
func limited(soft, hard int) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		script := fmt.Sprintf(`ulimit -Sn %d && ulimit -Hn %d && exec "$0"`, soft, hard)
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", script, cmd.Path}
	}
}

// openFiles: its soft and its hard limit.
func openFiles(t testing.TB, pid int) (soft, hard int) {
	t.Helper()
	text := string(read(t, fmt.Sprintf("/proc/%d/limits", pid)))
	_, line, _ := strings.Cut(text, "Max open files")
	_, err := fmt.Sscan(line, &soft, &hard)
	scene.Must(t, err)
	return soft, hard
}

func expectOpenFiles(t testing.TB, who string, pid, soft, hard int) {
	t.Helper()
	if gotSoft, gotHard := openFiles(t, pid); gotSoft != soft || gotHard != hard {
		t.Errorf("the %s may open %d files of %d, not %d of %d", who, gotSoft, gotHard, soft, hard)
	}
}

// A library that calls select() on what it opens counts on the host's limit.
func TestTheFrontRaisesItsLimitAndTheModuleGetsTheHosts(t *testing.T) {
	token := softhsm.New(t)
	module := faulty.Wrap(t, token)
	module.Play(t, "C_Initialize before hang once shared")
	p := host.Start(t, host.Options{Type: "KeyManager", Env: append(token.Env(), module.Env()...), Change: limited(256, 4096)})
	configured := make(chan error, 1)
	go func() { configured <- p.Configure(scene.Domain, module.In(token.PluginData(""))) }()
	scene.Eventually(t, "the module is in C_Initialize", func() bool { return len(module.Fired(t)) > 0 })
	expectOpenFiles(t, "front", p.PID(), 4096, 4096)
	expectOpenFiles(t, "module", module.Fired(t)[0].PID, 256, 4096)
	p.KillWorkers()
	scene.Must(t, <-configured)
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256))
	killWorker(t, p)
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256))
	expectOpenFiles(t, "worker after it", worker(t, p), 256, 4096)

	press := newPress(t)
	plugin := host.Start(t, host.Options{Type: "BundlePublisher", Change: limited(256, 4096)})
	scene.Must(t, plugin.Configure(scene.Domain, fmt.Sprintf("path = %q\n", press.path)))
	expectOpenFiles(t, "publisher", plugin.PID(), 4096, 4096)
}

// gRPC 1.51 gives up its listener at the first accept() without a descriptor (CVE-2023-4785).
func TestManyConnectionsDoNotEndTheListener(t *testing.T) {
	const many = 200
	token := softhsm.New(t)
	p := host.Start(t, host.Options{Type: "KeyManager", Env: token.Env(), Change: limited(64, 4096)})
	for range many {
		connection := host.Raw(t, p.Socket())
		scene.Must(t, connection.SetDeadline(time.Now().Add(time.Minute)))
		// HTTP/2's settings are the server's first word to whom it has accepted
		_, err := connection.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		scene.Must(t, err)
		_, err = io.ReadFull(connection, make([]byte, 9))
		scene.Must(t, err)
	}
	if os.Geteuid() == 0 {
		if open := len(descriptors(t, p.PID())); open < many {
			t.Fatalf("only %d descriptors are open", open)
		}
	}
	_, err := host.Invoke(ctx, host.Dial(t, p.Socket()), "/grpc.health.v1.Health/Check", []byte("\x0a\x06plugin"))
	scene.Must(t, err)
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	scene.Sign(t, p, scene.Generate(t, p, "ec", p256))
}
