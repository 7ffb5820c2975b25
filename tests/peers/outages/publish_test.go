package outages

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
)

// press has a bundle to publish, of which each edition differs in its number and keys.
type press struct {
	path        string
	certificate []byte
	key         []byte
	edition     uint64
}

func newPress(t testing.TB, directory string) *press {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	scene.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	scene.Must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	scene.Must(t, err)
	return &press{path: filepath.Join(directory, "bundle.json"), certificate: certificate, key: spki}
}

func (p *press) data(more string) string { return fmt.Sprintf("path = %q\n%s", p.path, more) }

// name of an edition's key; of many lengths, so that sizes differ much.
func name(edition uint64) string {
	return fmt.Sprintf("key-%d%s", edition, strings.Repeat("x", int(edition*701%4001)))
}

func (p *press) next() *types.Bundle {
	p.edition++
	return &types.Bundle{TrustDomain: domain, SequenceNumber: p.edition, RefreshHint: 300,
		X509Authorities: []*types.X509Certificate{{Asn1: p.certificate}},
		JwtAuthorities:  []*types.JWTKey{{KeyId: name(p.edition), PublicKey: p.key, ExpiresAt: 4102444800}}}
}

func (p *press) publish(plugin *host.Plugin) error {
	_, err := plugin.BundlePublisher().PublishBundle(ctx, &bundlepublisherv1.PublishBundleRequest{Bundle: p.next()})
	return err
}

// read the file as the discovery provider does; its sequence number.
func (p *press) read() (uint64, error) {
	text, err := os.ReadFile(p.path)
	if err != nil {
		return 0, err
	}
	bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(domain), text)
	if err != nil {
		return 0, fmt.Errorf("%w in %d bytes", err, len(text))
	}
	number, _ := bundle.SequenceNumber()
	if _, found := bundle.FindJWTAuthority(name(number)); !found || len(bundle.JWTAuthorities()) != 1 || len(bundle.X509Authorities()) != 1 {
		return 0, fmt.Errorf("edition %d has not the authorities that were published", number)
	}
	return number, nil
}

func (p *press) expectEdition(t testing.TB, want uint64) {
	t.Helper()
	if number, err := p.read(); err != nil || number != want {
		t.Errorf("the file is of edition %d (%v), want %d", number, err, want)
	}
}

func publisher(t testing.TB, p *press) *host.Plugin {
	t.Helper()
	plugin := host.Start(t, host.Options{Type: "BundlePublisher"})
	scene.Must(t, plugin.Configure(domain, p.data("")))
	return plugin
}

func notify(plugin *host.Plugin, bundle *types.Bundle) error {
	_, err := plugin.Notifier().NotifyAndAdvise(ctx, &notifierv1.NotifyAndAdviseRequest{
		Event: &notifierv1.NotifyAndAdviseRequest_BundleLoaded{BundleLoaded: &notifierv1.BundleLoaded{Bundle: bundle}}})
	return err
}

// A delivery that was on its way while a newer one was written: SPIRE has two doors, each with a
// process of its own, and both may have been started since. Only spiffe has the number in the file.
func TestALateDeliveryIsHeldBackInEveryFormat(t *testing.T) {
	t.Parallel()
	faults(t, 9)
	for _, format := range []string{"spiffe", "jwks", "pem"} {
		t.Run(format, func(t *testing.T) {
			directory := t.TempDir()
			newer, other := newPress(t, directory), newPress(t, directory)
			newer.edition, other.edition = 9, 8
			late := other.next()
			start := func(role string) *host.Plugin {
				plugin := host.Start(t, host.Options{Type: role})
				scene.Must(t, plugin.Configure(domain, newer.data(fmt.Sprintf("format = %q\n", format))))
				return plugin
			}
			publish := func(plugin *host.Plugin, bundle *types.Bundle) {
				t.Helper()
				_, err := plugin.BundlePublisher().PublishBundle(ctx, &bundlepublisherv1.PublishBundleRequest{Bundle: bundle})
				scene.Must(t, err)
			}
			file := func() string {
				text, err := os.ReadFile(newer.path)
				scene.Must(t, err)
				return string(text)
			}
			events, calls := start("Notifier"), start("BundlePublisher")
			scene.Must(t, notify(events, newer.next()))
			written := file()
			heldBack := func(how string) {
				t.Helper()
				if file() != written {
					t.Errorf("edition 9 came after 10, %s, and was written", how)
				}
			}
			publish(calls, late)
			heldBack("by the other process")
			scene.Must(t, events.Close())
			scene.Must(t, calls.Close())
			events, calls = start("Notifier"), start("BundlePublisher")
			publish(calls, late)
			heldBack("by a process that has been started since")
			scene.Must(t, notify(events, late))
			heldBack("by an event at a start")
			other.edition = 10
			publish(calls, other.next())
			if file() == written {
				t.Error("edition 11 was not written")
			}
		})
	}
}

// onlyTheBundle is left beside it: no temporary file.
func onlyTheBundle(t testing.TB, directory string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	scene.Must(t, err)
	for _, entry := range entries {
		if name := entry.Name(); name != "bundle.json" && name != ".bundle.json.lock" {
			t.Errorf("left behind: %s", name)
		}
	}
}

func TestAFullOrReadOnlyDiskLeavesTheOldBundleAndIsGotOver(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk")
	mount(t, disk, 64)
	faults(t, 2)
	p := newPress(t, disk)
	plugin := publisher(t, p)
	scene.Must(t, p.publish(plugin))

	filler := fill(t, disk)
	for range 3 {
		expect(t, p.publish(plugin), codes.Unavailable, p.path, "No space left")
		p.expectEdition(t, 1)
	}
	scene.Must(t, os.Remove(filler))
	onlyTheBundle(t, disk)
	scene.Must(t, p.publish(plugin))
	p.expectEdition(t, p.edition)

	before := p.edition
	remount(t, disk, true)
	expect(t, p.publish(plugin), codes.Unavailable, p.path, "Read-only")
	p.expectEdition(t, before)
	remount(t, disk, false)
	scene.Must(t, p.publish(plugin))
	p.expectEdition(t, p.edition)
	onlyTheBundle(t, disk)
}

func TestAFullDiskDoesNotKeepAServerFromStartingUnlessItIsToldSo(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk")
	mount(t, disk, 64)
	faults(t, 2)
	p := newPress(t, disk)
	for _, required := range []bool{false, true} {
		plugin := host.Start(t, host.Options{Type: "Notifier"})
		scene.Must(t, plugin.Configure(domain, p.data(fmt.Sprintf("required = %v", required))))
		filler := fill(t, disk)
		err := notify(plugin, p.next())
		if required {
			expect(t, err, codes.Unavailable, "No space left")
		} else {
			scene.Must(t, err)
			plugin.Logs.Wait(t, "cannot publish the bundle")
		}
		scene.Must(t, os.Remove(filler))
		scene.Must(t, notify(plugin, p.next()))
		p.expectEdition(t, p.edition)
		unload(t, plugin)
	}
}

func TestADirectoryThatIsRemovedIsPublishedToWhenItIsBack(t *testing.T) {
	t.Parallel()
	faults(t, 2)
	directory := filepath.Join(t.TempDir(), "out")
	scene.Must(t, os.Mkdir(directory, 0o700))
	p := newPress(t, directory)
	plugin := publisher(t, p)
	scene.Must(t, p.publish(plugin))
	scene.Must(t, os.RemoveAll(directory))
	expect(t, p.publish(plugin), codes.FailedPrecondition, directory, "No such file")
	scene.Must(t, os.Mkdir(directory, 0o700))
	scene.Must(t, p.publish(plugin))
	p.expectEdition(t, p.edition)

	scene.Must(t, os.Rename(directory, directory+".old")) // and another one in its place
	scene.Must(t, os.Mkdir(directory, 0o700))
	scene.Must(t, p.publish(plugin))
	p.expectEdition(t, p.edition)
}

func TestAFileThatIsReplacedByAnythingElseIsNotWrittenThrough(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	scene.Write(t, victim, "precious")
	p := newPress(t, directory)
	plugin := publisher(t, p)
	scene.Must(t, p.publish(plugin))
	thieves := []struct {
		what  string
		place func() error
		text  string
	}{
		{"a directory", func() error { return os.Mkdir(p.path, 0o700) }, "is a directory"},
		{"a symbolic link", func() error { return os.Symlink(victim, p.path) }, "is a symbolic link"},
		{"a dangling link", func() error { return os.Symlink("/nonexistent/x", p.path) }, "is a symbolic link"},
		{"a fifo", func() error { return syscall.Mkfifo(p.path, 0o600) }, "pipe"},
	}
	faults(t, len(thieves)+3)
	for _, thief := range thieves {
		scene.Must(t, os.Remove(p.path))
		scene.Must(t, thief.place())
		expect(t, p.publish(plugin), codes.FailedPrecondition, p.path, thief.text)
		scene.Must(t, os.Remove(p.path))
		scene.Must(t, p.publish(plugin))
		p.expectEdition(t, p.edition)
	}
	for what, damage := range map[string]func() error{
		"deleted":     func() error { return os.Remove(p.path) },
		"cut":         func() error { return os.Truncate(p.path, 100) },
		"overwritten": func() error { return os.WriteFile(p.path, []byte("{}"), 0o644) },
	} {
		scene.Must(t, damage())
		if err := p.publish(plugin); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		p.expectEdition(t, p.edition)
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("the victim: %q %v", text, err)
	}
	onlyTheBundle(t, directory)
}

// reader polls the file until it is stopped; what it must never see is an error, or an
// older edition than before.
type reader struct {
	stop  atomic.Bool
	group sync.WaitGroup
	reads atomic.Int64
}

func startReader(t testing.TB, p *press) *reader {
	r := &reader{}
	r.group.Go(func() {
		newest := uint64(0)
		for !r.stop.Load() {
			number, err := p.read()
			if err != nil {
				t.Errorf("a reader saw: %v", err)
				return
			}
			if number < newest {
				t.Errorf("a reader saw edition %d after %d", number, newest)
				return
			}
			newest = number
			r.reads.Add(1)
			time.Sleep(time.Millisecond)
		}
	})
	return r
}

func (r *reader) end() {
	r.stop.Store(true)
	r.group.Wait()
}

// shm is a directory on a tmpfs: fsync of a disk would make it a test of the disk.
func shm(t testing.TB) string {
	t.Helper()
	directory, err := os.MkdirTemp("/dev/shm", "outages")
	scene.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	return directory
}

func TestAReaderNeverSeesAPartialOrInvalidFile(t *testing.T) {
	t.Parallel()
	const editions = 100_000
	faults(t, 1)
	directory := shm(t)
	p := newPress(t, directory)
	plugin := publisher(t, p)
	scene.Must(t, p.publish(plugin))
	r := startReader(t, p)
	failed := 0
	for p.edition < editions && !t.Failed() {
		if err := p.publish(plugin); err != nil {
			failed++
			t.Error(err)
		}
	}
	r.end()
	p.expectEdition(t, p.edition)
	onlyTheBundle(t, directory)
	t.Logf("%d publications, %d failed calls; %d reads, all of whole and valid files", p.edition, failed, r.reads.Load())
}

func TestAPublisherKilledBetweenAnyTwoStepsLeavesAWholeFileAndNoOther(t *testing.T) {
	kills := either(25, 500)
	faults(t, kills)
	directory := shm(t)
	p := newPress(t, directory)
	plugin := publisher(t, p)
	scene.Must(t, p.publish(plugin))
	r := startReader(t, p)
	published := 0
	for range kills {
		begun := time.Now()
		scene.Must(t, p.publish(plugin))
		within := 3 * time.Since(begun)
		timer := time.AfterFunc(time.Duration(mathrand.Int64N(int64(within))), plugin.Kill)
		for p.publish(plugin) == nil {
			published++
		}
		timer.Stop()
		plugin = publisher(t, p)
		scene.Must(t, p.publish(plugin))
		p.expectEdition(t, p.edition)
		onlyTheBundle(t, directory)
	}
	r.end()
	t.Logf("%d kills among %d publications; %d reads, all of whole and valid files", kills, published, r.reads.Load())
}
