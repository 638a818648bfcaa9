"""Downloads of published data sets, laid out so that `shiftproof.data` opens them."""

from shiftproof.data.downloads.archives import ArchiveError
from shiftproof.data.downloads.get import Obtained, get_dataset
from shiftproof.data.downloads.http import DownloadError, RemoteFile
from shiftproof.data.downloads.sources import SOURCES, Source

__all__ = ["SOURCES", "ArchiveError", "DownloadError", "Obtained", "RemoteFile", "Source", "get_dataset"]
