package limbeck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

const (
	mostName = 255 // bytes of a file's name, by Linux's own rule
	mostStem = 200 // of it that the name of what came so far begins with: there must be room for the rest
)

// FetchOption changes what Fetch fetches.
type FetchOption func(*fetching)

// Path fetches this file, or all files under this folder of the run, in place of "student". "" is everything.
func Path(path string) FetchOption { return func(f *fetching) { f.path = strings.Trim(path, "/") } }

// Progress hears, now and then, how many bytes of a file there are, of how many.
func Progress(heard func(path string, done, size uint64)) FetchOption {
	return func(f *fetching) { f.heard = heard }
}

type fetching struct {
	client *Client
	runID  string
	dir    string
	path   string
	heard  func(path string, done, size uint64)
}

// Fetch downloads files of a run into dir, each verified by its sha256, and returns where they are, by path: the student
// unless Path says otherwise. Files keep their path in the run's folder, so that the student is in dir/student. Nothing
// that the server says leads out of dir, nor does a link in it: FolderNotOurs.
//
// A lost connection goes on where it was; so does another Fetch after this one was ended, from the file
// NAME.SHA256.part that it left (for NAME its own sha256, where it is longer than 200 bytes). A file that is there already and is the same is not fetched again. A file gets its name
// when it is complete and verified: StoreDamaged where it cannot be.
func (c *Client) Fetch(ctx context.Context, runID, dir string, options ...FetchOption) ([]string, error) {
	f := &fetching{client: c, runID: runID, dir: dir, path: "student", heard: func(string, uint64, uint64) {}}
	for _, option := range options {
		option(f)
	}
	known, err := c.Artifacts(ctx, runID)
	if err != nil {
		return nil, err
	}
	wanted, err := f.wanted(known)
	if err != nil {
		return nil, err
	}
	files, err := f.places(wanted)
	if err != nil {
		return nil, err
	}
	for i, artifact := range wanted {
		if len(artifact.Sha256) > 0 && same(files[i], artifact) {
			continue
		}
		if err := f.fetch(ctx, artifact, files[i]); err != nil {
			return files[:i], err
		}
	}
	return files, nil
}

// wanted are the file, or the files of the folder, that are asked for.
func (f *fetching) wanted(known []*limbeckv1.Artifact) ([]*limbeckv1.Artifact, error) {
	var found []*limbeckv1.Artifact
	for _, artifact := range known {
		if f.path == "" || artifact.Path == f.path || strings.HasPrefix(artifact.Path, f.path+"/") {
			found = append(found, artifact)
		}
	}
	if found == nil {
		message := fmt.Sprintf("the run has no file and no folder %s that can be fetched yet", f.path)
		return nil, newError(ArtifactUnknown, Problem{Message: message, Field: "path"})
	}
	return found, nil
}

// places are where files of the run go: never out of the folder. Nothing was written yet where they are refused.
func (f *fetching) places(artifacts []*limbeckv1.Artifact) ([]string, error) {
	var files []string
	var odd, links []Problem
	seen := map[string]bool{}
	for _, artifact := range artifacts {
		if !isInside(artifact.Path) || seen[artifact.Path] {
			odd = append(odd, Problem{Message: fmt.Sprintf("%q is no path of a file in the run's folder", artifact.Path)})
			continue
		}
		seen[artifact.Path] = true
		files = append(files, filepath.Join(f.dir, filepath.FromSlash(artifact.Path)))
		for above := path.Dir(artifact.Path); above != "."; above = path.Dir(above) {
			folder := filepath.Join(f.dir, filepath.FromSlash(above))
			if about, err := os.Lstat(folder); err == nil && !about.IsDir() && !seen[above] {
				links = append(links, Problem{
					Message: "is a link or a file: what is fetched would lie elsewhere", File: folder,
					Hint: "move it away, or fetch into another folder",
				})
			}
			seen[above] = true
		}
	}
	if odd != nil {
		message := "The server names files that lead elsewhere: nothing was fetched."
		return nil, &Error{Reason: Internal, Message: message, Problems: odd}
	}
	if links != nil {
		return nil, &Error{Reason: FolderNotOurs, Message: "The files cannot lie there.", Problems: links}
	}
	return files, nil
}

// isInside tells whether a path of a server is relative, goes down only, and has no sign that means something elsewhere.
func isInside(name string) bool {
	if strings.ContainsAny(name, "\\:") {
		return false
	}
	for _, sign := range name {
		if sign < ' ' || sign == 0x7f {
			return false
		}
	}
	for _, part := range strings.Split(name, "/") {
		if part == "" || part == "." || part == ".." || len(part) > mostName {
			return false
		}
	}
	return true
}

// fetch makes one file.
func (f *fetching) fetch(ctx context.Context, artifact *limbeckv1.Artifact, target string) error {
	d := &download{fetching: f, artifact: artifact, listed: artifact, target: target, retries: retries{client: f.client}}
	if err := d.open(); err != nil {
		return d.failed(err)
	}
	defer d.close()
	for again := true; ; {
		err := d.attempt(ctx)
		if err == nil {
			err = d.complete()
		}
		var damaged *Error
		if errors.As(err, &damaged) && damaged.Reason == StoreDamaged && d.done > 0 && (again || d.grows()) {
			again = false // what came before may be of another file, or broken on this disk
			err = d.empty()
		} else if err != nil {
			err = d.retries.wait(ctx, err)
		} else {
			return nil
		}
		if err != nil {
			return d.failed(err)
		}
	}
}

// same tells whether the file is there already.
func same(target string, artifact *limbeckv1.Artifact) bool {
	file, err := os.Open(target)
	if err != nil {
		return false
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil || !about.Mode().IsRegular() || uint64(about.Size()) != artifact.Size {
		return false
	}
	sum := sha256.New()
	_, err = io.Copy(sum, file)
	return err == nil && bytes.Equal(sum.Sum(nil), artifact.Sha256)
}

// download is one file on its way.
type download struct {
	*fetching
	listed   *limbeckv1.Artifact
	artifact *limbeckv1.Artifact // as it was told last
	target   string
	retries  retries
	part     *os.File
	sum      hash.Hash
	done     uint64
}

// open finds what an earlier Fetch left of a file with this sha256.
func (d *download) open() error {
	stem := d.target
	if folder, base := filepath.Split(d.target); len(base) > mostStem {
		stem = fmt.Sprintf("%s%x", folder, sha256.Sum256([]byte(base)))
	}
	name := stem + ".part"
	if len(d.listed.Sha256) > 0 {
		name = fmt.Sprintf("%s.%.16s.part", stem, hex.EncodeToString(d.listed.Sha256))
	}
	if err := os.MkdirAll(filepath.Dir(d.target), 0o777); err != nil {
		return err
	}
	if about, err := os.Lstat(name); err == nil && !about.Mode().IsRegular() {
		return &fs.PathError{Op: "open", Path: name, Err: errors.New("it is no regular file")}
	}
	part, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	d.part, d.sum = part, sha256.New()
	if err := lock(part); err != nil {
		_ = part.Close()
		return &Error{Reason: RunLocked, Message: "The file is being fetched already.", Problems: []Problem{
			{Message: "another Fetch works on it", File: d.target, Hint: "wait for it"},
		}}
	}
	if len(d.listed.Sha256) == 0 { // nobody knows of what file it is
		return d.empty()
	}
	held, err := io.Copy(d.sum, part)
	d.done = uint64(held)
	if err == nil && d.done > d.listed.Size {
		return d.empty()
	}
	return err
}

// grows tells whether the run may still change the file.
func (d *download) grows() bool { return len(d.listed.Sha256) == 0 && d.done < d.artifact.Size }

// empty begins with the first byte.
func (d *download) empty() error {
	d.artifact, d.sum, d.done = d.listed, sha256.New(), 0
	if _, err := d.part.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return d.part.Truncate(0)
}

// attempt is one connection.
func (d *download) attempt(ctx context.Context) error {
	if len(d.artifact.Sha256) > 0 && d.done == d.artifact.Size {
		return nil
	}
	request := &limbeckv1.DownloadArtifactRequest{RunId: d.runID, Path: d.artifact.Path, Offset: d.done}
	if d.done > 0 {
		request.Sha256 = d.artifact.Sha256
	}
	began := false
	err := drain[*limbeckv1.DownloadArtifactRequest, *limbeckv1.DownloadArtifactResponse](
		ctx, d.client, d.client.training.DownloadArtifact, request,
		func(message *limbeckv1.DownloadArtifactResponse) error {
			if started := message.GetStarted(); started != nil {
				began = true
				return d.begin(started)
			}
			if !began {
				return d.damaged("bytes came before the start")
			}
			return d.write(message.GetData())
		},
	)
	if err != nil {
		return err
	}
	if !began || d.done < d.artifact.Size {
		text := fmt.Sprintf("the call ended after %d of %d bytes of %s", d.done, d.artifact.Size, d.artifact.Path)
		return unavailable(d.client.settings.name(), text)
	}
	return nil
}

// begin is for what the server says of the file. It must be what was listed, and what was begun; a file that grows is
// what it is at the start.
func (d *download) begin(started *limbeckv1.Artifact) error {
	if started.Path != d.artifact.Path || len(started.Sha256) != sha256.Size {
		return d.damaged(fmt.Sprintf("%q came, with the sha256 %x", started.Path, started.Sha256))
	}
	changed := !bytes.Equal(started.Sha256, d.artifact.Sha256) || started.Size != d.artifact.Size
	if changed && (d.done > 0 || len(d.listed.Sha256) > 0) {
		return d.damaged("it is another file now than when it was listed or begun")
	}
	d.artifact = started
	return nil
}

func (d *download) write(data []byte) error {
	if d.done+uint64(len(data)) > d.artifact.Size {
		return d.damaged(fmt.Sprintf("more than its %d bytes came", d.artifact.Size))
	}
	if _, err := d.part.Write(data); err != nil {
		return err
	}
	d.sum.Write(data)
	d.done += uint64(len(data))
	d.retries.progress()
	d.heard(d.artifact.Path, d.done, d.artifact.Size)
	return nil
}

// complete verifies the file and gives it its name.
func (d *download) complete() error {
	if sum := d.sum.Sum(nil); !bytes.Equal(sum, d.artifact.Sha256) {
		return d.damaged(fmt.Sprintf("its bytes have the sha256 %x, %x is stated", sum, d.artifact.Sha256))
	}
	if err := d.part.Sync(); err != nil {
		return err
	}
	name := d.part.Name()
	if err := d.part.Close(); err != nil {
		return err
	}
	d.part = nil
	return os.Rename(name, d.target)
}

// close leaves what came for another Fetch, where it is known of what file it is.
func (d *download) close() {
	if d.part == nil {
		return
	}
	if d.done == 0 || len(d.listed.Sha256) == 0 {
		_ = os.Remove(d.part.Name())
	}
	_ = d.part.Close()
	d.part = nil
}

// failed tells what went wrong on this disk as an Error too.
func (d *download) failed(err error) error {
	var onDisk *fs.PathError
	var renamed *os.LinkError
	problem := Problem{File: d.target}
	switch {
	case errors.As(err, &onDisk):
		problem.Message = onDisk.Err.Error()
	case errors.As(err, &renamed):
		problem.Message = renamed.Err.Error()
	default:
		return err
	}
	reason, message := FolderNotOurs, "The files cannot lie there."
	if full(err) {
		reason, message = DiskFull, "The disk is full."
	}
	return &Error{Reason: reason, Message: message, Problems: []Problem{problem}, Cause: err}
}

func (d *download) damaged(message string) error {
	hint := "fetch it again; if that does not help, see the server's disk"
	return newError(StoreDamaged, Problem{Message: message, Field: d.artifact.Path, Hint: hint})
}
