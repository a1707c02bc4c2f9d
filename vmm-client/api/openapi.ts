/**
 * The OpenAPI document: every route, with the schemas that requests are validated against. Served as it is; the server
 * registers the same routes from ROUTES, so that nothing is in one and not in the other.
 */

import { ANSWER_SCHEMAS } from './answer-schemas.ts';
import { REQUEST_SCHEMAS } from './request-schemas.ts';
import { ROUTES, type Route } from './routes.ts';

export const API_ROOT = '/api/v1';
/** Of answers that are streams. */
export const STREAM_TYPE = 'application/octet-stream';

const REFUSALS: Readonly<Record<number, string>> = {
  400: 'The request is not what this route takes.',
  404: 'Nothing is created, or nothing has the name that was given.',
  405: 'The machine is not in the state that this needs.',
  409: 'There is one already.',
  500: 'It could not be done.',
};

const json = (schema: string) => ({
  content: { 'application/json': { schema: { $ref: `#/components/schemas/${schema}` } } },
});

function describeSuccess({ answer, stream }: Route): object {
  if (stream !== undefined) return { 200: { description: stream, content: { [STREAM_TYPE]: {} } } };
  return answer === undefined
    ? { 204: { description: 'Done.' } }
    : { 200: { description: 'The answer.', ...json(answer) } };
}

function describeRoute(route: Route): object {
  const { operation, summary, body, silence, refusals } = route;
  const success = describeSuccess(route);
  const nothing = silence === undefined ? {} : { 204: { description: silence } };
  const failures = [400, ...refusals, 500].map((status) => [
    status,
    { description: REFUSALS[status], ...json('Refusal') },
  ]);
  return {
    operationId: operation,
    summary,
    ...(body === undefined ? {} : { requestBody: { required: true, ...json(body) } }),
    responses: { ...success, ...nothing, ...Object.fromEntries(failures) },
  };
}

/** The document; `version` is that of the program. */
export function createOpenApi(version: string) {
  return {
    openapi: '3.1.0',
    info: {
      title: 'ringside',
      description: "The part of Cloud Hypervisor's REST API that this VMM has.",
      version,
    },
    servers: [{ url: `http://localhost${API_ROOT}` }],
    paths: Object.fromEntries(
      ROUTES.map((route) => [`/${route.name}`, { [route.method.toLowerCase()]: describeRoute(route) }]),
    ),
    components: { schemas: { ...REQUEST_SCHEMAS, ...ANSWER_SCHEMAS } },
  };
}
