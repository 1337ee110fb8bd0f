import json, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])  # client.py model.onnx IMAGE...
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
for file in sys.argv[2:]:
    image = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    print(classes[session.run(["logits"], {"images": image[None]})[0].argmax()], file)
