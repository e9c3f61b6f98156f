package limbeck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	limbeckv1 "limbeck.dev/go/limbeck/v1"
)

func artifact(path string, content []byte) *limbeckv1.Artifact {
	sum := sha256.Sum256(content)
	return &limbeckv1.Artifact{Path: path, Size: uint64(len(content)), Sha256: sum[:]}
}

func startedFile(a *limbeckv1.Artifact) *limbeckv1.DownloadArtifactResponse {
	return &limbeckv1.DownloadArtifactResponse{Kind: &limbeckv1.DownloadArtifactResponse_Started{Started: a}}
}

func data(content []byte) *limbeckv1.DownloadArtifactResponse {
	return &limbeckv1.DownloadArtifactResponse{Kind: &limbeckv1.DownloadArtifactResponse_Data{Data: content}}
}

// fileIs tells whether a file holds this, and is alone in its folder.
func fileIs(t *testing.T, path string, content []byte) {
	t.Helper()
	found, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(found, content) {
		t.Errorf("%s holds %d bytes, %v", path, len(found), err)
	}
	if others, _ := filepath.Glob(path + ".*"); len(others) > 0 {
		t.Errorf("%v are left", others)
	}
}

func TestAFileIsFetchedOverLostConnections(t *testing.T) {
	content := bytes.Repeat([]byte("limbeck "), 100_000)
	whole := artifact("student/model.safetensors", content)
	var offsets []uint64
	client := play(t, &script{
		artifacts: []*limbeckv1.Artifact{{Path: "recipe.yaml"}, whole},
		download: func(r *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
			offsets = append(offsets, r.Offset)
			if (r.Offset > 0) != bytes.Equal(r.Sha256, whole.Sha256) {
				return refused(t, codes.InvalidArgument, RequestInvalid)
			}
			_ = stream.Send(startedFile(whole))
			next := content[r.Offset:]
			if len(next) > 300_000 {
				_ = stream.Send(data(next[:300_000]))
				return lost
			}
			return stream.Send(data(next))
		},
	})
	dir := t.TempDir()
	var told []uint64
	heard := Progress(func(_ string, done, size uint64) { told = append(told, done) })
	files, err := client.Fetch(context.Background(), "r", dir, heard)
	if err != nil || len(files) != 1 || fmt.Sprint(offsets) != "[0 300000 600000]" || told[len(told)-1] != whole.Size {
		t.Fatal(files, err, offsets, told)
	}
	fileIs(t, files[0], content)
	if _, err := client.Fetch(context.Background(), "r", dir); err != nil || len(offsets) != 3 {
		t.Error("what is there was fetched again", err)
	}
	// what an earlier process left is gone on from
	if err := os.Rename(files[0], fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256), 700_000); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Fetch(context.Background(), "r", dir); err != nil || fmt.Sprint(offsets[3:]) != "[700000]" {
		t.Error(err, offsets)
	}
	fileIs(t, files[0], content)
	// and where it is broken, it is fetched from the start
	if err := os.Rename(files[0], fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fmt.Sprintf("%s.%.8x.part", files[0], whole.Sha256), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Fetch(context.Background(), "r", dir); err != nil {
		t.Error(err)
	}
	fileIs(t, files[0], content)
}

func TestNamesAreAsLongAsADiskTakesThem(t *testing.T) {
	content := []byte("long")
	for _, long := range []string{strings.Repeat("n", 200), strings.Repeat("n", 201), strings.Repeat("ä", 127) + "n"} {
		whole := artifact("student/"+long, content)
		var offsets []uint64
		client := play(t, &script{
			artifacts: []*limbeckv1.Artifact{whole},
			download: func(r *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
				offsets = append(offsets, r.Offset)
				_ = stream.Send(startedFile(whole))
				return stream.Send(data(content[r.Offset:]))
			},
		})
		dir := t.TempDir()
		files, err := client.Fetch(context.Background(), "r", dir)
		if err != nil || len(files) != 1 || filepath.Base(files[0]) != long {
			t.Fatal(files, err)
		}
		if len(long) > 200 { // what an earlier process left is gone on from
			part := fmt.Sprintf("%x.%.8x.part", sha256.Sum256([]byte(long)), whole.Sha256)
			if err := os.Rename(files[0], filepath.Join(dir, "student", part)); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(filepath.Join(dir, "student", part), 3); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Fetch(context.Background(), "r", dir); err != nil || fmt.Sprint(offsets) != "[0 3]" {
				t.Error(err, offsets)
			}
		}
		fileIs(t, files[0], content)
		if left, _ := os.ReadDir(filepath.Join(dir, "student")); len(left) != 1 {
			t.Error(left)
		}
	}
}

func TestBytesOfAnotherFileAreRefused(t *testing.T) {
	whole := artifact("student/a", []byte("right"))
	var calls atomic.Int32
	client := play(t, &script{
		artifacts: []*limbeckv1.Artifact{whole},
		download: func(_ *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
			calls.Add(1)
			_ = stream.Send(startedFile(whole))
			return stream.Send(data([]byte("wrong")))
		},
	})
	dir := t.TempDir()
	if _, err := client.Fetch(context.Background(), "r", dir); !errors.Is(err, StoreDamaged) || calls.Load() != 2 {
		t.Error(calls.Load(), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "student/a")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the wrong file is there", err)
	}
}

func TestAFileThatGrowsIsFetchedAsItIsAtTheStart(t *testing.T) {
	var calls atomic.Int32
	content := []byte("one\ntwo\n")
	client := play(t, &script{
		artifacts: []*limbeckv1.Artifact{{Path: "events.jsonl", Size: 4}},
		download: func(r *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
			switch calls.Add(1) {
			case 1:
				_ = stream.Send(startedFile(artifact("events.jsonl", content)))
				_ = stream.Send(data(content[:4]))
				return lost
			case 2: // it has grown
				return refused(t, codes.DataLoss, StoreDamaged)
			}
			content = append(content, "three\n"...)
			_ = stream.Send(startedFile(artifact("events.jsonl", content)))
			return stream.Send(data(content[r.Offset:]))
		},
	})
	dir := t.TempDir()
	files, err := client.Fetch(context.Background(), "r", dir, Path("events.jsonl"))
	if err != nil || calls.Load() != 3 {
		t.Fatal(calls.Load(), err)
	}
	fileIs(t, files[0], content)
}

func TestNothingLeadsOutOfTheFolder(t *testing.T) {
	s := &script{download: func(_ *limbeckv1.DownloadArtifactRequest, stream limbeckv1.TrainingService_DownloadArtifactServer) error {
		t.Error("it was asked for")
		return lost
	}}
	client := play(t, s)
	for _, path := range []string{
		"../x", "student/../../x", "/etc/x", "student//x", "student/./x", "student/", "student\\x", "c:x", "student/x\x00", "..",
		strings.Repeat("n", 256),
	} {
		s.artifacts = []*limbeckv1.Artifact{artifact("student/good", nil), artifact(path, []byte("x"))}
		if _, err := client.Fetch(context.Background(), "r", t.TempDir(), Path("")); !errors.Is(err, Internal) {
			t.Errorf("%q: %v", path, err)
		}
	}
	dir := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "student")); err != nil {
		t.Fatal(err)
	}
	s.artifacts = []*limbeckv1.Artifact{artifact("student/x", []byte("x"))}
	if _, err := client.Fetch(context.Background(), "r", dir); !errors.Is(err, FolderNotOurs) {
		t.Error(err)
	}
	if _, err := client.Fetch(context.Background(), "r", dir, Path("twin")); !errors.Is(err, ArtifactUnknown) {
		t.Error(err)
	}
}
