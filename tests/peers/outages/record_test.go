package outages

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

// ---- killed while it writes ----

// maker of keys of one id: what SPIRE was told of them, over all processes.
type maker struct {
	id         string
	seen       map[string]bool // fingerprints of all that it was told of
	last       string          // of these the last one
	generation string          // of the key that the present process began with
}

// run until the process is gone.
func (m *maker) run(p *host.Plugin, group *sync.WaitGroup) {
	group.Go(func() {
		for {
			key, err := load.Generate(p, m.id, p256)
			if err != nil {
				return
			}
			m.told(key)
		}
	})
}

func (m *maker) told(key *keymanagerv1.PublicKey) {
	m.seen[key.Fingerprint] = true
	m.last = key.Fingerprint
}

// adopted by a start: as text in the label, generations are in order.
func (m *maker) adopted(t *testing.T, p *host.Plugin) string {
	t.Helper()
	for _, line := range p.Logs.Lines() {
		if line.Message == "key adopted" && line.Fields["key_id"] == m.id {
			return strings.Split(line.Fields["label"], "-")[2]
		}
	}
	t.Fatalf("the log tells of no key that was adopted as %s", m.id)
	return ""
}

// check what a start serves: the key that SPIRE was told of last; or one that was made after it, and
// of which it was not told any more.
func (m *maker) check(t *testing.T, p *host.Plugin, key *keymanagerv1.PublicKey) {
	t.Helper()
	if key == nil {
		t.Fatalf("%s is lost", m.id)
	}
	generation := m.adopted(t, p)
	if key.Fingerprint != m.last && (m.seen[key.Fingerprint] || generation <= m.generation) {
		t.Errorf("%s is an older key than the one that SPIRE was told of last", m.id)
	}
	scene.Sign(t, p, key)
	m.generation = generation
	m.told(key)
}

// withDefaults is the plugin data with the defaults of what becomes of superseded keys.
func withDefaults(data string) string {
	return strings.Replace(data, "destroy_superseded_after = 0\n", "", 1)
}

func TestAPluginKilledWhileItWritesItsRecordServesTheNewestKeys(t *testing.T) {
	const condemned, fresh = 4, 2 // of one id: keep_condemned, and what a killed process leaves
	kills := either(30, 300)
	faults(t, kills)
	b := newBench(t, "")
	b.Data = withDefaults(b.Data)
	var makers []*maker
	for _, id := range []string{"x509-CA-A", "x509-CA-B", "JWT-Signer-A"} {
		makers = append(makers, &maker{id: id, seen: map[string]bool{}})
	}
	p := b.Ready(t)
	for range kills {
		var group sync.WaitGroup
		for _, m := range makers {
			m.run(p, &group)
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond) // at random is the point
		workers := p.Workers()
		p.Kill()
		group.Wait()
		for _, worker := range workers {
			scene.Eventually(t, "the worker goes after its front", func() bool { return host.Gone(worker) })
		}
		p = b.Ready(t)
		found := served(t, p)
		for _, m := range makers {
			if m.last != "" || found[m.id] != nil {
				m.check(t, p, found[m.id])
			}
		}
	}
	most := len(makers) * (1 + condemned + fresh)
	scene.Eventually(t, fmt.Sprintf("no more than %d pairs are on the token", most), func() bool {
		return len(b.named(t)) <= 2*most // both halves have names
	})
	told := 0
	for _, m := range makers {
		told += len(m.seen)
	}
	t.Logf("%d kills, %d keys", kills, told)
}

// ---- its disk ----

// Each rotation waits for the disk as long as the scribe is patient. Nobody else does.
func TestAHungDiskUnderTheRecordHoldsUpNoSignatureAndStopsNoRotation(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b := newBench(t, "")
	disk := filepath.Join(b.Dir, "disk")
	freeze := mountFreezable(t, disk)
	b.Data = withDefaults(b.Data) + fmt.Sprintf("record_file = %q\n", filepath.Join(disk, "record"))
	p, still, l := b.Busy(t, 4)
	before := scene.Generate(t, p, "JWT-Signer-A", p256)
	thaw := freeze()
	for range 3 {
		last := scene.Generate(t, p, "JWT-Signer-A", p256)
		scene.Sign(t, p, still, last)
		before = last
	}
	l.Round()
	line := p.Logs.Wait(t, "record_file was not written within 2 s")
	if line.Level != hclog.Warn {
		t.Errorf("the log says: %v", line)
	}
	thaw()
	p.Logs.Wait(t, "record_file is written again")
	l.EndWithoutFailures()
	unload(t, p)
	p = b.Ready(t)
	for _, key := range []*keymanagerv1.PublicKey{still, before} {
		if found := served(t, p); found[key.Id].GetFingerprint() != key.Fingerprint {
			t.Errorf("served after a restart: %v; want %v", found, key)
		}
	}
}

// The first rotation waits for the disk, once, as long as the scribe is patient; then they go on.
func TestAFullDiskUnderTheRecordStopsNoRotationAndDestroysNothing(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	const rotated, rotations = "JWT-Signer-A", 3
	b := newBench(t, "")
	disk := filepath.Join(b.Dir, "disk")
	mount(t, disk, 64)
	b.Data += fmt.Sprintf("record_file = %q\n", filepath.Join(disk, "record"))
	p, still, l := b.Busy(t, 4)
	last := scene.Generate(t, p, rotated, p256)
	filler := fill(t, disk)
	before := b.Labels(t)
	for range rotations {
		last = scene.Generate(t, p, rotated, p256)
		scene.Sign(t, p, last)
	}
	line := p.Logs.Wait(t, "record_file cannot be written")
	if line.Level != hclog.Warn || !strings.Contains(line.String(), "No space left on device") {
		t.Errorf("the log says: %v", line)
	}
	after := b.Labels(t)
	if len(after) != len(before)+rotations {
		t.Errorf("on the token were %v, %d keys were made, and it has %v", before, rotations, after)
	}
	scene.Must(t, os.Remove(filler))
	p.Logs.Wait(t, "record_file is written again")
	b.expectPairs(t, 2)
	l.EndWithoutFailures()
	unload(t, p)
	p = b.Ready(t)
	found := served(t, p)
	for _, key := range []*keymanagerv1.PublicKey{still, last} {
		if len(found) != 2 || found[key.Id] == nil || found[key.Id].Fingerprint != key.Fingerprint {
			t.Errorf("served after a restart: %v; want %v", found, key)
		}
	}
}
