// Google's SDK for Node against a gateway: `node client.mjs SCENARIO ARGUMENTS…` prints one JSON value. BASE and TOKEN say where.
import { GenerateVideosOperation, GoogleGenAI, createPartFromUri } from '@google/genai';

const ai = new GoogleGenAI({ apiKey: process.env.TOKEN, httpOptions: { baseUrl: process.env.BASE } });
const model = process.env.MODEL;

const textOf = async (parts) => (await ai.models.generateContent({ model, contents: [{ role: 'user', parts }] })).text;
const all = async (pager) => {
  const names = [];
  for await (const item of await pager) names.push(item.name);
  return names;
};

const scenarios = {
  async upload(path, mimeType) {
    return ai.files.upload({ file: path, config: { mimeType, displayName: 'made by node' } });
  },

  async useFile(name) {
    const file = await ai.files.get({ name });
    return { file, text: await textOf([{ text: 'What is this?' }, createPartFromUri(file.uri, file.mimeType)]) };
  },

  async ownerWithoutQuota(path, mimeType) {
    const file = await scenarios.upload(path, mimeType);
    const config = { httpOptions: { headers: { 'x-pollux-max-wait': '0' } } };
    const ask = (...parts) => ai.models
      .generateContent({ model, contents: [{ role: 'user', parts }], config })
      .then((answer) => ({ status: 200, text: answer.text }), (error) => ({ status: error.status, text: error.message }));
    const part = createPartFromUri(file.uri, file.mimeType);
    const first = await ask({ text: 'One' }, part);
    const second = await ask({ text: 'Two' }, part);
    return { file, first, second, without: await ask({ text: 'Without it' }) };
  },

  async films() {
    // Version 3 of the SDK begins films at Vertex AI only; it still polls those of the Gemini API.
    const begun = await fetch(`${process.env.BASE}/v1beta/models/${model}:predictLongRunning`, {
      method: 'POST',
      headers: { 'x-goog-api-key': process.env.TOKEN, 'content-type': 'application/json' },
      body: JSON.stringify({ instances: [{ prompt: 'A cat' }] }),
    }).then((answer) => answer.json());
    let operation = Object.assign(new GenerateVideosOperation(), begun);
    for (let i = 0; i < 100 && !operation.done; i += 1) {
      operation = await ai.operations.getVideosOperation({ operation });
    }
    const { uri } = operation.response.generatedVideos[0].video;
    const film = await fetch(uri, { headers: { 'x-goog-api-key': process.env.TOKEN } });
    return { name: begun.name, uri, bytes: (await film.arrayBuffer()).byteLength, status: film.status };
  },

  async files(path, mimeType) {
    const file = await scenarios.upload(path, mimeType);
    const chat = ai.chats.create({ model });
    const said = [];
    for (const text of ['one', 'two', 'three']) {
      const part = createPartFromUri(file.uri, file.mimeType);
      said.push((await chat.sendMessage({ message: [{ text }, part] })).text);
    }
    const listed = await all(ai.files.list({ config: { pageSize: 2 } }));
    await ai.files.delete({ name: file.name });
    const after = await ai.files.get({ name: file.name }).then(() => 200, (error) => error.status);
    return { file, said, listed, after };
  },

  async caches() {
    const config = { contents: [{ role: 'user', parts: [{ text: 'a long text '.repeat(500) }] }], ttl: '600s' };
    const cache = await ai.caches.create({ model, config });
    const answer = await ai.models.generateContent({ model, contents: 'Hello', config: { cachedContent: cache.name } });
    const renewed = await ai.caches.update({ name: cache.name, config: { ttl: '1200s' } });
    const listed = await all(ai.caches.list());
    await ai.caches.delete({ name: cache.name });
    return { cache, text: answer.text, renewed, listed };
  },

  async batches() {
    const src = ['one', 'two'].map((text) => ({ contents: [{ role: 'user', parts: [{ text }] }] }));
    const made = await ai.batches.create({ model, src });
    let batch = made;
    for (let i = 0; i < 100 && !/SUCCEEDED|FAILED/.test(batch.state); i += 1) {
      batch = await ai.batches.get({ name: made.name });
    }
    const listed = await all(ai.batches.list());
    return { made, batch, listed };
  },

  async interactions() {
    const first = await ai.interactions.create({ model, input: 'Hello' });
    const second = await ai.interactions.create({ model, input: 'And now?', previous_interaction_id: first.id });
    const events = [];
    const stream = await ai.interactions.create({
      model, input: 'Streamed', previous_interaction_id: second.id, stream: true,
    });
    for await (const event of stream) events.push(event.event_type);
    const again = await ai.interactions.get(second.id);
    await ai.interactions.delete(first.id);
    return { first: first.id, second: second.id, again: again.id, previous: again.previous_interaction_id, events };
  },
};

const [scenario, ...args] = process.argv.slice(2);
try {
  console.log(JSON.stringify(await scenarios[scenario](...args)));
} catch (error) {
  console.error(`${error.name} ${error.status ?? ''}: ${error.message}`);
  process.exit(1);
}
