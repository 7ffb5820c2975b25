package outages

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"spire-hsm/peers/host"
	"spire-hsm/peers/hungdisk"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

const hungSentence = "the PIN file does not answer, as its file system hangs"

// onHungDisk: the PIN is on a disk of its own, which can stop answering. `elsewhere` is plugin_data
// with the PIN on another.
func onHungDisk(t *testing.T, more string) (b *bench, disk *hungdisk.Disk, elsewhere string) {
	t.Helper()
	b = newBench(t, more)
	disk = hungdisk.Mount(t, b.Dir+"/pin-disk", "pin", b.PIN+"\n")
	elsewhere = b.Data
	b.Data = strings.Replace(b.Data, b.PINFile, disk.File, 1)
	return b, disk, elsewhere
}

// endsBesideAHungDisk: an orderly end, for which nothing has to be read. What is stuck ends with
// the disk.
func endsBesideAHungDisk(t *testing.T, p *host.Plugin, disk *hungdisk.Disk) {
	t.Helper()
	go func() {
		scene.Eventually(t, "the plugin ends", p.Exited)
		disk.End()
	}()
	unload(t, p)
}

func TestAHungDiskUnderThePINFileStopsNobodyWhoIsLoggedIn(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b, disk, elsewhere := onHungDisk(t, "")
	p, _, l := b.Busy(t, 4)
	disk.Hang()
	l.Await(100)
	scene.Generate(t, p, "x509-CA-B", p256)
	scene.Must(t, p.Ping())
	scene.Must(t, p.Configure(domain, elsewhere))
	l.Await(100)
	l.EndWithoutFailures()
	expectEnds(t, p, 0)
	select {
	case <-disk.Asked():
		t.Error("somebody asked the disk for the PIN, and nobody was to log in")
	default:
	}
	unload(t, p)
}

func TestAHungDiskUnderThePINFileStopsTheLoginAndNothingElse(t *testing.T) {
	t.Parallel()
	faults(t, 2)
	b, disk, elsewhere := onHungDisk(t, "call_timeout = \"4s\"\noperation_timeout = \"1s\"\n")
	p := b.Ready(t)
	key := scene.Generate(t, p, "x509-CA-A", p256)
	disk.Hang()
	p.KillWorkers()
	expect(t, load.Sign(p, key), codes.Unavailable, "away") // its time is up, whatever the disk does
	<-disk.Asked()
	p.Logs.Wait(t, hungSentence)
	expect(t, load.Sign(p, key), codes.Unavailable, hungSentence)
	scene.Must(t, p.Ping())
	if found := served(t, p); found[key.Id] == nil {
		t.Errorf("served meanwhile: %v", found)
	}
	disk.Answer()
	scene.Eventually(t, "it signs again", func() bool { return load.Sign(p, key) == nil })
	disk.Hang()
	p.KillWorkers()
	<-disk.Asked()
	scene.Must(t, p.Configure(domain, elsewhere))
	scene.Sign(t, p, key)
	endsBesideAHungDisk(t, p, disk)
}

func TestAHungDiskUnderThePINFileOfAStartIsNamed(t *testing.T) {
	t.Parallel()
	faults(t, 1)
	b, disk, elsewhere := onHungDisk(t, "startup_wait = \"1s\"\noperation_timeout = \"1s\"\n")
	disk.Hang()
	p := b.Start(t)
	expect(t, p.Configure(domain, b.Data), codes.Unavailable, hungSentence)
	scene.Must(t, p.Ping())
	scene.Must(t, p.Configure(domain, elsewhere))
	scene.Sign(t, p, scene.Generate(t, p, "x509-CA-A", p256))
	endsBesideAHungDisk(t, p, disk)
}
