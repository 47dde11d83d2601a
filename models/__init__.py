"""Tables, and nothing but tables."""

from models.image import Image
from models.image_revision import ImageRevision
from models.metadata import Moment, Table
from models.request import AnsweredRequest

metadata = Table.metadata
images = metadata.tables["images"]
image_revisions = metadata.tables["image_revisions"]
requests = metadata.tables["requests"]

__all__ = ["AnsweredRequest", "Image", "ImageRevision", "Moment", "image_revisions", "images", "metadata", "requests"]
